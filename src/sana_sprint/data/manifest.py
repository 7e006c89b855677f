"""The manifest: one row per picture and caption, in data/raw/manifest.parquet, ordered by split, then key."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from sana_sprint import storage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FILE = "manifest.parquet"
QUARANTINE = "quarantine.jsonl"
SPLITS = ("eval", "train")
GROUPS = ("heldout", "seen")


@dataclass(frozen=True)
class Row:
    """A pair. `sha256` is that of the PNG bytes in the shard; `phash` the perceptual hash of the picture;
    `task` a GenEval task or ""; `truth` a JSON string, "{}" when unknown.
    """

    key: str
    shard: str
    width: int
    height: int
    caption: str
    caption_length: int
    sha256: str
    phash: str
    split: str
    group: str
    task: str
    truth: str


@dataclass(frozen=True)
class Fault:
    """A picture that was left out: its name and why."""

    name: str
    reason: str


TYPES = {"str": pa.string(), "int": pa.int32()}
SCHEMA = pa.schema([pa.field(field.name, TYPES[str(field.type)], nullable=False) for field in fields(Row)])


def write(folder: Path, rows: Sequence[Row], faults: Sequence[Fault]) -> None:
    """Writes manifest and quarantine into a folder; equal rows give equal bytes."""
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
    with storage.whole_file(folder / FILE) as path:
        pq.write_table(table, path, compression="zstd")
    lines = [json.dumps(asdict(fault), ensure_ascii=False) + "\n" for fault in faults]
    storage.write_text(folder / QUARANTINE, "".join(lines))


def read(folder: Path, split: str | None = None) -> list[Row]:
    """Returns the rows of data/raw, of one split or of both. Raises ValueError naming a missing or broken
    file.
    """
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run `dvc repro prepare` to make it")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable manifest ({error}); run `dvc repro -f prepare`") from error
    if table.schema.names != SCHEMA.names:
        raise ValueError(f"{path}: columns are {table.schema.names}, expected {SCHEMA.names}; rerun prepare")
    rows = [Row(**values) for values in table.to_pylist()]
    return [row for row in rows if split is None or row.split == split]


def read_faults(folder: Path) -> list[Fault]:
    """Returns the quarantined pictures of data/raw."""
    path = folder / QUARANTINE
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run `dvc repro prepare` to make it")
    return [Fault(**json.loads(line)) for line in path.read_text().splitlines()]


def truth(row: Row) -> dict[str, Any]:
    """Returns what is known about a picture, as JSON types; {} when nothing is."""
    return json.loads(row.truth)
