"""Scores of a folder of pictures, made here or elsewhere, under a protocol of profiles/protocols/."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sana_sprint import storage
from sana_sprint.evaluation import folder_distances, folder_draw, folder_geneval, folder_protocol, latency

if TYPE_CHECKING:
    from pathlib import Path


def run(protocol_file: Path, folder: Path, cache: Path, root: Path) -> dict[str, Any]:
    """Returns {"protocol", "protocol_digest", "pictures", "scores", "drawn", "machine"}, for GenEval also "looked", a
    line per picture; "drawn" is None of pictures made elsewhere. Raises ValueError naming the file for whatever does
    not fit the protocol."""
    protocol = folder_protocol.load(protocol_file)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name a folder of pictures")
    if isinstance(protocol, folder_protocol.GenEval):
        found = folder_geneval.run(protocol, folder, cache, root)
    else:
        found = folder_distances.run(protocol, folder, cache, root)
    path = folder / folder_draw.DRAWN
    drawn = storage.read_json(path) if path.is_file() else None
    return found | {"drawn": drawn, "machine": latency.machine()}
