"""DVC's own files after a kill. DVC writes its list of readers and writers and dvc.lock in place, so that a kill at
that moment leaves them cut, and every later command fails on them."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PLACE = ".dvc/tmp"  # where DVC keeps the list and its guards
LOCK_FILES = ("dvc.lock", "pipelines/*/dvc.lock")


def recover(root: Path) -> list[str]:
    """Removes the list of readers and writers if it is cut, and moves a cut dvc.lock aside: the next `dvc repro` finds
    in the cache what the lock file named. Whole files are left alone.

    Returns a line about each file, none when all are whole. Raises ValueError while a `dvc` is writing there.
    """
    told = []
    users = root / PLACE / "rwlock"
    if not _is_whole_list(users):
        with _guarded(root, "rwlock.lock"):
            if not _is_whole_list(users):
                users.unlink()
                told.append(f"{users.relative_to(root)}: was cut, removed")
    for path in sorted(path for pattern in LOCK_FILES for path in root.glob(pattern)):
        if _is_whole_lock(path):
            continue
        with _guarded(root, "lock"):
            if not _is_whole_lock(path):
                told.append(f"{path.relative_to(root)}: was cut, moved to {_aside(root, path)}")
    return told


def _aside(root: Path, path: Path) -> Path:
    name = "-".join((*path.relative_to(root).parts, "cut"))
    return path.replace(root / PLACE / name).relative_to(root)


@contextmanager
def _guarded(root: Path, name: str) -> Iterator[None]:
    """Holds DVC's own guard of a file that DVC writes."""
    from dvc.lock import LockError, make_lock

    (root / PLACE).mkdir(parents=True, exist_ok=True)
    try:
        with make_lock(str(root / PLACE / name)):
            yield
    except LockError:
        raise ValueError(f"{PLACE}/{name}: a `dvc` is at work here; let it end, or stop it, and try again") from None


def _is_whole_list(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return True


def _is_whole_lock(path: Path) -> bool:
    """A lock file ends in a newline and holds what DVC's schema asks. Cut at the end of a line it may pass: the stages
    that it lost are looked up in the cache all the same.
    """
    from dvc.exceptions import DvcException
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import load_yaml
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(load_yaml(str(path)))
    except (DvcException, Invalid):
        return False
    return path.read_text().endswith("\n")
