"""Stage evaluate: student, undistilled student and teacher under one protocol, with standard errors and
times.

Pictures are drawn, judged and dropped model by model; only the shown ones are kept. The teacher's pictures do
not depend on the student's size and are cached beside the repository's data; deleting the cache is always
safe.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.torch import load_file

from sana_sprint import storage
from sana_sprint.data import manifest
from sana_sprint.evaluation import clip_judge, generate, judges, latency, protocol, schedule, sheets, tally
from sana_sprint.maths import metrics

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from sana_sprint.config import Evaluate, Sampling
    from sana_sprint.evaluation.generate import Loaded
    from sana_sprint.evaluation.judges import Judge, Verdict
    from sana_sprint.evaluation.protocol import Prompt

SHOWN = 24
GALLERY = 240  # of protocol.shown, which begins with those of SHOWN


@dataclass(frozen=True)
class Folders:
    """What the stage reads, and the cache it may use."""

    student: Path
    schedule: Path
    undistilled: Path
    teacher: Path
    raw: Path
    judge: Path
    cache: Path


@dataclass(frozen=True)
class Court:
    """All that scores pictures: the prompts with their verdict judge, and CLIP with the features of real
    pictures.
    """

    prompts: list[Prompt]
    judge: Judge
    clip: clip_judge.Clip
    texts: Tensor
    reference: Tensor
    fid_name: str


@dataclass
class Outcome:
    """Evaluate's JSON, every verdict by model and steps, and the gallery's pictures, as tiles, by model and steps."""

    result: dict[str, Any]
    prompts: list[Prompt]
    verdicts: dict[str, dict[str, list[Verdict]]]
    shown: dict[str, dict[str, np.ndarray]]


def run(params: Evaluate, sampling: Sampling, sigma_d: float, folders: Folders, size: str) -> Outcome:
    """Returns the scores of one student size beside its undistilled twin and the teacher. Raises ValueError
    naming what is missing.
    """
    outcome, court, sampling = begin(params, sampling, sigma_d, folders, size)
    for model in ("student", "undistilled"):
        loaded = generate.load(getattr(folders, model), sampling, sigma_d)
        for steps in protocol.STEPS:
            evaluate_student(outcome, court, loaded, params, model, steps)
    loaded = generate.load(folders.teacher, sampling, sigma_d)
    evaluate_teacher(outcome, court, loaded, params, folders, "teacher")
    for steps in params.teacher_fewer_steps:
        fewer = replace(loaded, sampling=sampling.model_copy(update={"teacher_steps": steps}))
        evaluate_teacher(outcome, court, fewer, params, folders, "teacher_fewer")
    return outcome


def begin(
    params: Evaluate, sampling: Sampling, sigma_d: float, folders: Folders, size: str
) -> tuple[Outcome, Court, Sampling]:
    """Returns an outcome without scores, the judges, and the sampling by the student's schedule."""
    sampling = schedule.sampling_by(folders.schedule, sampling)
    missing = [steps for steps in protocol.STEPS if str(steps) not in sampling.times]
    if missing:
        raise ValueError(f"{folders.schedule}: no times for {missing} steps; run `dvc repro schedule` again")
    prompts = protocol.prompts(manifest.read(folders.raw, "eval"), params)
    court = summon(params, folders.judge, prompts)
    judge = {"kind": params.judge, "digest": storage.digest(folders.judge)}
    described = protocol.describe(prompts, params, sampling, sigma_d, judge)
    outcome = Outcome(
        {
            "protocol": described,
            "protocol_digest": protocol.digest(described),
            "size": size,
            "times": sampling.times,
            "scores": defaultdict(dict),
            "latency": defaultdict(dict),
            "machine": latency.machine(),
        },
        prompts,
        defaultdict(dict),
        defaultdict(dict),
    )
    return outcome, court, sampling


def evaluate_student(outcome: Outcome, court: Court, loaded: Loaded, params: Evaluate, model: str, steps: int) -> None:
    """Adds a student's pictures at one step count to the outcome; times the distilled one."""
    name = f"evaluate {model} {steps}"
    pictures = generate.pictures(loaded, loaded.student, court.prompts, steps, params.seed, params.batch, name)
    enter(outcome, court, model, str(steps), pictures)
    if model == "student":
        timed = latency.measure(loaded, loaded.student, court.prompts, steps, params.seed, params)
        outcome.result["latency"][model][str(steps)] = timed


def evaluate_teacher(
    outcome: Outcome, court: Court, loaded: Loaded, params: Evaluate, folders: Folders, model: str
) -> None:
    """Adds the teacher's pictures, drawn or from the cache, and its times under the name `model`."""
    steps = str(loaded.sampling.teacher_steps)
    key = protocol.teacher_digest(outcome.result["protocol"], loaded.sampling, storage.digest(folders.teacher))
    path = folders.cache / f"teacher-{key[:24]}.npy"
    pictures = cached(path, len(court.prompts))
    if pictures is None:
        name = f"evaluate teacher {steps}"
        pictures = generate.pictures(loaded, loaded.teacher, court.prompts, 1, params.seed, params.batch, name)
        with storage.whole_file(path) as unfinished, unfinished.open("wb") as file:
            np.save(file, pictures)
    enter(outcome, court, model, steps, pictures)
    timed = latency.measure(loaded, loaded.teacher, court.prompts, 1, params.seed, params)
    outcome.result["latency"][model][steps] = timed


def cached(path: Path, number: int) -> np.ndarray | None:
    """Returns the pictures of a cache file, or None when there is none that can be used."""
    try:
        pictures = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return pictures if pictures.ndim == 4 and len(pictures) == number else None


def summon(params: Evaluate, folder: Path, prompts: list[Prompt]) -> Court:
    """Returns the judges of data/models/judge, ready for these prompts."""
    path = folder / "reference.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run `dvc repro judge` to make it")
    clip = clip_judge.load(folder / "clip")
    return Court(
        prompts,
        judges.load(params.judge, folder),
        clip,
        clip.captions([prompt.caption for prompt in prompts]),
        load_file(path)["features"],
        "fid_scene_clip" if params.judge == "scenes" else "fid_corpus_clip",
    )


def enter(outcome: Outcome, court: Court, model: str, steps: str, pictures: np.ndarray) -> None:
    """Scores pictures and adds scores, verdicts and the shown pictures to the outcome."""
    verdicts = court.judge(pictures, court.prompts)
    features = court.clip.pictures(pictures)
    score = {
        court.fid_name: tally.plain(metrics.frechet_estimate(court.reference, features)),
        "clip_score": tally.plain(metrics.clip_score(features, court.texts)),
    }
    outcome.result["scores"][model][steps] = tally.by_task(court.prompts, verdicts) | score
    outcome.verdicts[model][steps] = verdicts
    if model in ("teacher", "student"):
        order = [prompt.index for prompt in protocol.shown(court.prompts, GALLERY)]
        tiles = [np.asarray(sheets.tile(pictures[index], sheets.TILE_MAX_PX)) for index in order]
        outcome.shown[model][steps] = np.stack(tiles)


def headline(result: dict[str, Any]) -> dict[str, float]:
    """Returns the scores and times worth a curve in MLflow: no per-task values, whose names may be
    captions.
    """
    scores = {
        f"{model}.{steps}.{name}": part["value"]
        for model, by_steps in result["scores"].items()
        for steps, score in by_steps.items()
        for name, part in score.items()
        if name != "tasks"
    }
    times = {
        f"latency.{model}.{steps}.{name}": value
        for model, by_steps in result["latency"].items()
        for steps, timed in by_steps.items()
        for name, value in timed.items()
    }
    return scores | times


def write_grids(outcome: Outcome, folder: Path) -> None:
    """Writes a contact sheet per step count and of the teacher, the longer ones of the gallery, a captioned
    comparison, and verdicts.json with every verdict and the place of each tile.
    """
    prompts = protocol.shown(outcome.prompts, GALLERY)
    ((teacher_steps, teacher),) = outcome.shown["teacher"].items()
    student = outcome.shown["student"]
    titles = {"teacher": teacher} | {f"{k} step" + "s" * (k != "1"): student[k] for k in protocol.COMPARED}
    gallery = {f"teacher-{teacher_steps}": teacher} | {f"student-{k}": student[k] for k in protocol.COMPARED}
    with storage.whole_folder(folder) as unfinished:
        for steps, pictures in student.items():
            sheets.contact(pictures[:SHOWN]).save(unfinished / f"{steps}_step.png")
        sheets.contact(teacher[:SHOWN]).save(unfinished / "teacher.png")
        (unfinished / "gallery").mkdir()
        for name, pictures in gallery.items():
            sheets.contact(pictures).save(unfinished / f"gallery/{name}.png")
        sheets.comparison([p.caption for p in prompts[:12]], {t: x[:12] for t, x in titles.items()}).save(
            unfinished / "teacher_vs_student.png"
        )
        content = {
            "size": outcome.result["size"],
            "tile_px": list(sheets.tile(teacher[0], sheets.TILE_MAX_PX).size),
            "size_px": [outcome.result["protocol"]["size_px"][side] for side in ("width", "height")],
            "shown": [prompt.index for prompt in prompts[:SHOWN]],
            "gallery": [prompt.index for prompt in prompts],
            "prompts": [prompt.public() for prompt in outcome.prompts],
            "verdicts": {
                model: {steps: [v._asdict() for v in verdicts] for steps, verdicts in by_steps.items()}
                for model, by_steps in outcome.verdicts.items()
            },
        }
        storage.write_json(unfinished / "verdicts.json", content)
