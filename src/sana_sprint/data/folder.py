"""Source folder: a user's own pictures with metadata.jsonl or metadata.csv (file_name, text), or .txt
sidecars.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from sana_sprint.data import pictures
from sana_sprint.data.manifest import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLES = ("metadata.jsonl", "metadata.csv")
COLUMNS = ("file_name", "text")


@dataclass(frozen=True)
class Item:
    """A picture of a source: a name that a person finds it by, its key, its caption and its bytes."""

    name: str
    key: str
    caption: str
    data: bytes


@dataclass(frozen=True)
class Line:
    """A line of the metadata: where it stands, the file it names and its caption."""

    place: str
    file_name: str
    text: str


def read(source: Path) -> Iterator[Item | Fault]:
    """Yields the pictures of a folder by name, and a Fault for each one without a caption. Raises ValueError
    naming file and line for a missing folder, no pictures, a missing column or file, an empty caption, two of
    one key.
    """
    names = listed(source)
    tables = [source / name for name in TABLES if (source / name).is_file()]
    if len(tables) > 1:
        raise ValueError(f"{source}: holds both {TABLES[0]} and {TABLES[1]}; keep one of them")
    captions = from_table(tables[0], names) if tables else from_sidecars(source, names)
    unique_keys(source, names)
    if not captions:
        raise ValueError(
            f"{source}: {len(names)} pictures but no captions; write {TABLES[0]} or .txt files beside them"
        )
    for name in names:
        if name in captions:
            yield Item(name, key_of(name), captions[name], (source / name).read_bytes())
        else:
            yield Fault(name, f"no caption in {tables[0].name}" if tables else "no .txt file beside it")


def listed(source: Path) -> list[str]:
    """Returns the pictures' names relative to the folder, sorted; hidden files are not looked at."""
    if not source.is_dir():
        raise ValueError(f"{source}: no such folder; put your pictures and {TABLES[0]} there")
    names = sorted(
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.suffix.lower() in pictures.SUFFIXES and path.is_file()
    )
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    if not names:
        kinds = " ".join(pictures.SUFFIXES)
        raise ValueError(f"{source}: holds no pictures ({kinds}); put your pictures and {TABLES[0]} there")
    return names


def key_of(name: str) -> str:
    """Returns a picture's key: its name without suffix; slashes and dots, which shards give a meaning, become
    _.
    """
    return str(PurePosixPath(name).with_suffix("")).replace("/", "_").replace(".", "_")


def unique_keys(source: Path, names: list[str]) -> None:
    """Raises ValueError naming both pictures when two have one key."""
    owners: dict[str, str] = {}
    for name in names:
        other = owners.setdefault(key_of(name), name)
        if other != name:
            raise ValueError(f"{source}: {other} and {name} have one key '{key_of(name)}'; rename one of them")


def from_table(path: Path, names: list[str]) -> dict[str, str]:
    """Returns the caption of each picture that a metadata file names."""
    captions: dict[str, str] = {}
    places: dict[str, str] = {}
    known = set(names)
    for line in json_lines(path) if path.suffix == ".jsonl" else csv_lines(path):
        name = PurePosixPath(line.file_name).as_posix()
        if name not in known:
            raise ValueError(f"{line.place}: no picture '{name}' in {path.parent}; add it or delete the line")
        if name in captions:
            raise ValueError(f"{line.place}: '{name}' has a caption already, {places[name]}; delete one of them")
        captions[name], places[name] = tidy(line.text, line.place), line.place
    return captions


def from_sidecars(source: Path, names: list[str]) -> dict[str, str]:
    """Returns the caption of each picture that has a .txt file of its name beside it."""
    sidecars = {name: (source / name).with_suffix(".txt") for name in names}
    return {name: tidy(text_of(path), str(path)) for name, path in sidecars.items() if path.is_file()}


def tidy(caption: str, place: str) -> str:
    """Returns a caption with single spaces. Raises ValueError naming the place when nothing is left."""
    words = " ".join(caption.split())
    if not words:
        raise ValueError(f"{place}: the caption is empty; write one or delete the picture")
    return words


def text_of(path: Path) -> str:
    """Returns the content of a UTF-8 text file, with or without a byte-order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def json_lines(path: Path) -> Iterator[Line]:
    """Yields the lines of a metadata.jsonl."""
    for number, text in enumerate(text_of(path).split("\n"), start=1):
        if not text.strip():
            continue
        place = f"{path} line {number}"
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: not valid JSON ({error}); mend the line") from None
        yield Line(place, *(field(record, name, place) for name in COLUMNS))


def field(record: Any, name: str, place: str) -> str:
    """Returns a text column of a record. Raises ValueError naming place and column."""
    if not isinstance(record, dict) or name not in record:
        found = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"{place}: the column '{name}' is missing (found {found}); each line needs {COLUMNS}")
    if not isinstance(record[name], str | None):
        raise ValueError(f"{place}: the column '{name}' must be text, got {record[name]!r:.60}")
    return record[name] or ""


def csv_lines(path: Path) -> Iterator[Line]:
    """Yields the rows of a metadata.csv; the place is the line on which a row ends."""
    reader = csv.DictReader(io.StringIO(text_of(path), newline=""), strict=True)
    try:
        header = reader.fieldnames or []
        missing = [name for name in COLUMNS if name not in header]
        if missing:
            raise ValueError(f"{path} line 1: the column '{missing[0]}' is missing (found {list(header)}); add it")
        for record in reader:
            if None in record:
                remedy = "quote a caption that holds commas"
                raise ValueError(f"{path} line {reader.line_num}: more columns than the header; {remedy}")
            yield Line(f"{path} line {reader.line_num}", *(record[name] or "" for name in COLUMNS))
    except csv.Error as error:
        raise ValueError(f"{path} after line {reader.line_num}: not valid CSV ({error}); mend the next line") from None
