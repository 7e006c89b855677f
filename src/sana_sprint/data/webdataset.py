"""Source webdataset: tar shards of {key}.jpg|png|webp with {key}.txt or the caption in {key}.json, as
img2dataset writes them (https://github.com/rom1504/img2dataset).
"""

from __future__ import annotations

import json
from itertools import groupby
from typing import TYPE_CHECKING

from sana_sprint.data import folder, pictures, shards
from sana_sprint.data.manifest import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CAPTIONS = (".txt", ".json")


def read(source: Path) -> Iterator[folder.Item | Fault]:
    """Yields the pictures of all tars by name, and a Fault for each without picture or caption. Raises
    ValueError naming tar and member for no tars, a truncated tar, an empty caption, malformed JSON, two of
    one key.
    """
    tars = sorted(source.rglob("*.tar"))
    if not tars:
        raise ValueError(f"{source}: holds no .tar shards; put them there as img2dataset writes them")
    owners: dict[str, str] = {}
    for path in tars:
        for stem, group in groupby(suffixes(path), key=lambda member: member[0]):
            place = f"{path}: {stem}"
            key = stem.replace("/", "_")
            if key in owners:
                raise ValueError(f"{place} and {owners[key]} have one key '{key}'; rename one or drop its tar")
            owners[key] = place
            name = f"{path.relative_to(source).as_posix()}: {stem}"
            yield sample(name, place, key, {suffix: content for _, suffix, content in group})
    if not owners:
        raise ValueError(f"{source}: the .tar shards hold no pictures; put them there as img2dataset writes them")


def suffixes(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yields (stem, suffix, content) of a tar's files; the stem ends at the first dot of the file's name."""
    for name, content in shards.members(path):
        place, _, file = name.removeprefix("./").rpartition("/")
        stem, dot, suffix = file.partition(".")
        if stem and dot:
            yield f"{place}/{stem}" if place else stem, f".{suffix.lower()}", content


def sample(name: str, place: str, key: str, parts: dict[str, bytes]) -> folder.Item | Fault:
    """Returns one pair from its files by suffix."""
    image = next((parts[suffix] for suffix in pictures.SUFFIXES if suffix in parts), None)
    if image is None:
        return Fault(name, f"no picture among {sorted(parts)}")
    text = caption(parts, place)
    return Fault(name, "neither .txt nor a caption in .json") if text is None else folder.Item(name, key, text, image)


def caption(parts: dict[str, bytes], place: str) -> str | None:
    """Returns the caption of the .txt file, else the one in the .json, else None."""
    try:
        texts = {suffix: parts[suffix].decode("utf-8-sig") for suffix in CAPTIONS if suffix in parts}
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: the caption is not UTF-8 text (byte {error.start}); write it as UTF-8") from None
    if ".txt" in texts:
        return folder.tidy(texts[".txt"], f"{place}.txt")
    if ".json" not in texts:
        return None
    try:
        record = json.loads(texts[".json"])
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}.json: not valid JSON ({error}); mend the shard") from None
    if not isinstance(record, dict) or "caption" not in record:
        return None
    return folder.tidy(folder.field(record, "caption", f"{place}.json"), f"{place}.json")
