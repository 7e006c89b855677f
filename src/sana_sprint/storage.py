"""Writes that are whole or absent, and digests that prove it. Every output of every stage goes through here."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

UNFINISHED = ".unfinished-"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _absolute(path: Path) -> Path:
    """Returns the path with its parent resolved and made. A link at the end itself is kept and later replaced,
    never followed: behind it may stand the cache's only copy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent.resolve() / path.name


def _beside(path: Path) -> Path:
    """Returns a new empty folder beside `path`, of the names that `whole_folder` clears up."""
    return Path(tempfile.mkdtemp(prefix=f"{UNFINISHED}{path.name}-", dir=path.parent))


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path` that takes its place (and any older content's) when the block ends, and
    vanishes when the block raises. Folders left over by a killed process are removed first."""
    path = _absolute(path)
    for stale in path.parent.iterdir():
        if re.fullmatch(re.escape(f"{UNFINISHED}{path.name}-") + "[^-]{8}", stale.name):
            shutil.rmtree(stale, ignore_errors=True)
    unfinished = _beside(path)
    unfinished.chmod(0o755)
    try:
        yield unfinished
        for file in unfinished.rglob("*"):
            if file.is_file():
                _sync(file)
        _take_place(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _take_place(finished: Path, path: Path) -> None:
    """Renames a finished folder to `path`. What stood there leaves by a rename too: deleting it in place would show
    half of it to a reader, or for ever after a kill."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    if not path.exists():
        finished.rename(path)
        _sync(path.parent)
        return
    older = _beside(path)
    path.rename(older)
    try:
        finished.rename(path)
    except BaseException:
        older.rename(path)
        raise
    _sync(path.parent)
    shutil.rmtree(older)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that is renamed to it when the block ends, and removed when it raises."""
    path = _absolute(path)
    unfinished = path.with_name(f"{UNFINISHED}{path.name}")
    unfinished.unlink(missing_ok=True)
    try:
        yield unfinished
        _sync(unfinished)
        unfinished.replace(path)
        _sync(path.parent)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON with sorted keys, whole or not at all: equal content gives equal bytes."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file. Raises ValueError naming the file when it is missing or broken."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; run `dvc repro` to make it") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); delete it and run `dvc repro`") from None


def digest(path: Path, without: str | None = None) -> str:
    """Returns the sha256 (64 hex digits) of a file, or of a folder's file names and contents in sorted order; what is
    called `without` in the folder is passed over."""
    if path.is_file():
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder")
    total = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        place = file.relative_to(path)
        if place.parts[0] != without:
            total.update(f"{place.as_posix()}\0{digest(file)}\n".encode())
    return total.hexdigest()


def digest_of(content: Any) -> str:
    """Returns the sha256 (64 hex digits) of JSON-able content, independent of key order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
