"""Big files of registered versions, once on the disk: where the artefacts lie in a folder of this machine, a version's
file that equals another version's, byte for byte, becomes a hard link to it. Files of versions are never written again,
so that a link is as good as a copy; deleting one version leaves the other whole. For S3 see shared_objects.py.
"""

from __future__ import annotations

import filecmp
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable

BLOCK_BYTES = 4096  # of usual disks: smaller files gain nothing


def local(uri: str) -> Path | None:
    """Returns the folder of an artefact location, None for one that is no folder of this machine."""
    parts = urlsplit(uri)
    folder = Path(unquote(parts.path)) if parts.scheme in ("", "file") else None
    return folder if folder and folder.is_dir() else None


def link(folder: Path, others: Iterable[Path]) -> int:
    """Makes hard links of the files in `folder` that lie, equal byte for byte, at the same place in one of the other
    folders; returns how many bytes that saves. A file that cannot be linked stays as it is.
    """
    places, saved = list(others), 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        size = path.stat().st_size
        if size >= BLOCK_BYTES:
            twins = (place / path.relative_to(folder) for place in places)
            saved += size * any(_linked(path, twin) for twin in twins)
    return saved


def _linked(path: Path, twin: Path) -> bool:
    if twin.is_symlink() or not twin.is_file() or not filecmp.cmp(path, twin, shallow=False):
        return False
    unfinished = path.with_name(f".{uuid.uuid4().hex}")
    try:
        os.link(twin, unfinished)
    except OSError:  # another disk, one without links, or too many of them
        return False
    unfinished.replace(path)
    return True


def link_version(location: str) -> int:
    """Does `link` for the LoggedModel at an artefact location, against its neighbours in the store."""
    folder = local(location)
    models = folder.parent.parent if folder else None  # <models>/<model id>/artifacts
    if folder is None or models is None:
        return 0
    return link(folder, [one for one in sorted(models.glob("*/artifacts")) if one != folder])
