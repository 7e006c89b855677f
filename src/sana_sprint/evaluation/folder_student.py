"""A student under the public protocols of evaluate.protocols: it draws and is scored as by `sana-sprint sample` and
`score`; a stage that was cut short draws and looks at nothing twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sana_sprint import storage
from sana_sprint.evaluation import folder_draw, folder_protocol, folder_scores

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def run(files: Sequence[Path], student: Path, cache: Path, root: Path) -> dict[str, Any]:
    """Returns {protocol: {steps: {"protocol_digest", "pictures", "scores"}}} of a student's folder, for every step
    count that a protocol has times for. Its pictures are kept under `cache`; deleting them is always safe."""
    found: dict[str, Any] = {}
    for file in files:
        protocol = folder_protocol.load(root / file)
        key = storage.digest_of([storage.digest(student), protocol.model_dump()])[:16]
        found[file.stem] = {}
        for steps in protocol.drawn.times:
            pictures = cache / f"{file.stem}-{key}-{steps}"
            folder_draw.run(root / file, student, pictures, int(steps), root)
            scored = folder_scores.run(root / file, pictures, cache / "looked", root)
            found[file.stem][steps] = {name: scored[name] for name in ("protocol_digest", "pictures", "scores")}
    return found


def headline(found: dict[str, Any]) -> dict[str, float]:
    """Returns the scores worth a chart in MLflow, `<protocol>/<score>_<steps>_step`: none per task or per category."""
    return {
        f"{name}/{score}_{steps}_step": part["value"]
        for name, by_steps in found.items()
        for steps, one in by_steps.items()
        for score, part in one["scores"].items()
        if "value" in part
    }
