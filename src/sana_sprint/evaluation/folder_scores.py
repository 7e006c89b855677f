"""Scores of a folder of pictures, made here or elsewhere, under a protocol of profiles/protocols/."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sana_sprint import storage
from sana_sprint.evaluation import (
    folder_distances,
    folder_draw,
    folder_geneval,
    folder_pictures,
    folder_protocol,
    latency,
)
from sana_sprint.models import threads

if TYPE_CHECKING:
    from pathlib import Path

    from sana_sprint.evaluation.folder_protocol import Distances, GenEval


def run(protocol_file: Path, folder: Path, cache: Path, root: Path) -> dict[str, Any]:
    """Returns {"protocol", "protocol_digest", "pictures", "scores", "drawn", "machine"}, for GenEval also "looked", a
    line per picture; "drawn" is None of pictures made elsewhere. All but "machine" is the same on any number of cores.
    Raises ValueError naming the file for whatever does not fit the protocol."""
    protocol = folder_protocol.load(protocol_file)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name a folder of pictures")
    if not any(path.suffix in folder_pictures.KINDS for path in folder.rglob("*")):
        kinds = ", ".join(folder_pictures.KINDS)
        raise ValueError(f"{folder}: empty, no picture ({kinds}) lies in it; draw some by `sana-sprint sample`")
    path = folder / folder_draw.DRAWN
    drawn = storage.read_json(path) if path.is_file() else None
    if drawn is not None:
        check(drawn, protocol, path, root)
    how = None  # of pictures made elsewhere nobody knows
    if drawn is not None:
        how = protocol.drawn.model_dump() | {"instruction_text": drawn["instruction"]}
    with threads.one():
        if isinstance(protocol, folder_protocol.GenEval):
            found = folder_geneval.run(protocol, folder, cache, root, {"drawn": how})
        else:
            found = folder_distances.run(protocol, folder, cache, root, {"drawn": how})
        return found | {"drawn": drawn, "machine": latency.machine()}


def check(drawn: dict[str, Any], protocol: GenEval | Distances, path: Path, root: Path) -> None:
    """Raises ValueError naming the keys by which pictures were drawn otherwise than the protocol says. The prompts of
    GenEval lie beside its pictures; the captions of distances must be those of now."""
    asked = protocol.drawn.model_dump() | {"times": protocol.drawn.times.get(str(drawn["steps"]))}
    other = sorted(key for key in asked if drawn["drawn"].get(key) != asked[key])
    if isinstance(protocol, folder_protocol.Distances):
        folder_protocol.captions(protocol, root)  # says what is wrong with the file
        other += ["prompts"] if drawn["prompts"] != storage.digest(root / protocol.asked) else []
    if "instruction" not in drawn:
        raise ValueError(f"{path}: tells no instruction, as an earlier version wrote it; draw into an empty folder")
    if other:
        raise ValueError(
            f"{path}: drawn with other {', '.join(other)} than the protocol says; draw them by this protocol into an "
            "empty folder"
        )
