"""An evaluation of a student that is no output of the pipeline, such as a registered one: evaluate's code, the data and
judge of the working tree, and the times of the folder's own sampling.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sana_sprint.evaluation import evaluate
from sana_sprint.models import threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sana_sprint.config import Evaluate, Sampling

ABSENT = "none"  # folders of the undistilled student and of the teacher, which are not read


def folders(student: Path, root: Path) -> evaluate.Folders:
    """Returns the places that an evaluation of a pipeline folder reads."""
    data = root / "data"
    return evaluate.Folders(
        student=student,
        schedule=student / "sampling.json",
        undistilled=root / ABSENT,
        teacher=root / ABSENT,
        raw=data / "raw",
        judge=data / "models/judge",
        cache=data / "cache/evaluate",
    )


def run(
    params: Evaluate,
    sampling: Sampling,
    sigma_d: float,
    student: Path,
    root: Path,
    size: str,
    agreed: Callable[[str], None],
) -> dict[str, Any]:
    """Returns evaluate's JSON with the student's scores and times alone. `agreed` is given the protocol's digest before
    a picture is drawn, and raises where it is another than was meant."""
    threads.use_fastest()
    places = folders(student, root)
    outcome, court, sampling = evaluate.begin(params, sampling, sigma_d, places, size)
    agreed(outcome.result["protocol_digest"])
    orders = evaluate.ordered(params, sampling, sigma_d, places, outcome.prompts, names=("student",))
    evaluate.fill(outcome, court, params, orders, places.cache)
    return outcome.result
