"""WebDataset shards: tar files of {key}.png, {key}.txt and {key}.json, with bytes that depend on the content
alone.
"""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sana_sprint.data import manifest, pictures

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

FOLDER = "shards"
TARGETED = ("key", "caption", "width", "height", "sha256", "split", "group", "task")


@dataclass(frozen=True)
class Sample:
    """One pair of a shard."""

    key: str
    png: bytes
    caption: str


class Spool:
    """PNGs on disk in the order of arrival, read back in any order: memory holds none of them."""

    def __init__(self, path: Path) -> None:
        """Opens an empty spool at `path`; leaving the `with` block deletes it."""
        self.path = path
        self.file = path.open("w+b")
        self.places: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Spool:
        """Returns the spool."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes and deletes the file."""
        self.file.close()
        self.path.unlink(missing_ok=True)

    def put(self, key: str, png: bytes) -> None:
        """Appends a PNG."""
        self.places[key] = (self.file.seek(0, io.SEEK_END), len(png))
        self.file.write(png)

    def get(self, key: str) -> bytes:
        """Returns the PNG of a key."""
        offset, length = self.places[key]
        self.file.seek(offset)
        return self.file.read(length)


def write(folder: Path, rows: Sequence[manifest.Row], spool: Spool, images_per_shard: int) -> list[manifest.Row]:
    """Writes shards/{split}-{number:05d}.tar into `folder`; returns the rows, ordered, with their shard's
    name.
    """
    (folder / FOLDER).mkdir()
    named = []
    for split in manifest.SPLITS:
        chosen = sorted((row for row in rows if row.split == split), key=lambda row: row.key)
        for number, start in enumerate(range(0, len(chosen), images_per_shard)):
            name = f"{split}-{number:05d}.tar"
            part = [replace(row, shard=name) for row in chosen[start : start + images_per_shard]]
            with tarfile.open(folder / FOLDER / name, "w", format=tarfile.GNU_FORMAT) as tar:
                for row in part:
                    add(tar, f"{row.key}.png", spool.get(row.key))
                    add(tar, f"{row.key}.txt", row.caption.encode())
                    add(tar, f"{row.key}.json", description(row))
            named += part
    return named


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file without owner, with mode 644 and time 0."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    tar.addfile(entry, io.BytesIO(data))


def description(row: manifest.Row) -> bytes:
    """Returns the JSON that goes beside a picture: the manifest's columns, and the truth as an object."""
    content = {name: getattr(row, name) for name in TARGETED} | {"truth": manifest.truth(row)}
    return (json.dumps(content, sort_keys=True, ensure_ascii=False) + "\n").encode()


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields the name and content of each file of a tar. Raises ValueError naming the tar and the last whole
    member when it is cut short: a whole tar ends in a block of zeros.
    """
    last, end = "none", 0
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                handle = tar.extractfile(member) if member.isfile() else None
                content = handle.read() if handle else b""
                last, end = member.name, member.offset_data + -(-member.size // 512) * 512
                if handle:
                    yield member.name, content
            file.seek(end)
            if file.read(512) != bytes(512):
                raise tarfile.ReadError("the closing block is missing")
    except tarfile.TarError as error:
        raise ValueError(
            f"{path}: truncated or broken tar after member {last} ({error}); copy it again or delete it"
        ) from error
    except FileNotFoundError:
        raise ValueError(f"{path}: no such shard; run `dvc repro -f prepare` to make it") from None


def read(path: Path) -> Iterator[Sample]:
    """Yields the pairs of a shard that `write` made, in its order."""
    parts: dict[str, bytes] = {}
    for name, content in members(path):
        stem, _, suffix = name.rpartition(".")
        parts[f"{stem}.{suffix}"] = content
        if suffix == "json":
            if not {f"{stem}.png", f"{stem}.txt"} <= set(parts):
                raise ValueError(f"{path}: {stem} lacks its picture or caption; run `dvc repro -f prepare`")
            yield Sample(stem, parts[f"{stem}.png"], parts[f"{stem}.txt"].decode())
            parts = {}


def images(folder: Path, split: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (key, pixels (H, W, 3) uint8) of a split of data/raw in the manifest's order."""
    for name in dict.fromkeys(row.shard for row in manifest.read(folder, split)):
        for sample in read(folder / FOLDER / name):
            yield sample.key, pictures.from_png(sample.png)


def stack(folder: Path, split: str) -> np.ndarray:
    """Returns all pictures of a split of data/raw, (N, H, W, 3) uint8, in the manifest's order."""
    pixels = [picture for _, picture in images(folder, split)]
    if not pixels:
        raise ValueError(f"{folder}: split '{split}' holds no pictures; run `dvc repro -f prepare`")
    return np.stack(pixels)
