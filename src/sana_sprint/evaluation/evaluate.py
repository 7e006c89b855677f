"""Stage evaluate: student, undistilled student and teacher under one protocol, with standard errors and
times.

Pictures are drawn, judged and dropped model by model; only the shown ones are kept. Each lies in a cache beside the
repository's data from when it is drawn, so that a run that was killed goes on, and the teacher's serve all sizes;
deleting the cache is always safe. Times are measured afterwards, never of pictures from the cache.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors.torch import load_file

from sana_sprint import storage
from sana_sprint.data import manifest
from sana_sprint.evaluation import (
    clip_judge,
    drawing,
    generate,
    judges,
    latency,
    picture_cache,
    protocol,
    schedule,
    sheets,
    tally,
    weights,
)
from sana_sprint.evaluation.drawing import Order
from sana_sprint.maths import metrics
from sana_sprint.models import threads

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from sana_sprint.config import Evaluate, Sampling
    from sana_sprint.evaluation.judges import Judge, Verdict
    from sana_sprint.evaluation.protocol import Prompt

SHOWN = 24
GALLERY = 240  # of protocol.shown, which begins with those of SHOWN
FEWEST = 3  # pictures: the jackknife of the Frechet distance takes one away, and a covariance needs two
BLANK = (8, 8, 3)


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
    orders = ordered(params, sampling, sigma_d, folders, outcome.prompts)
    fill(outcome, court, params, orders, folders.cache)
    picture_cache.forget(folders.cache, size, {picture_cache.key(order) for _, order in orders})
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
    with threads.one():
        court = summon(params, folders.judge, prompts)
    judge, at_once = judges.described(params.judge, folders.judge), drawing.at_once(sampling)
    judge |= {"clip_resize": clip_judge.RESIZE, "clip_preprocessor": court.clip.preprocessor}
    described = protocol.describe(prompts, params, sampling, sigma_d, judge, at_once)
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


def fill(outcome: Outcome, court: Court, params: Evaluate, orders: list[tuple[str, Order]], cache: Path) -> None:
    """Carries out the orders: scores, verdicts, shown pictures, and the times of all but the undistilled network."""
    with threads.one(), drawing.Crew() as crew:
        for model, order in orders:
            pictures = picture_cache.pictures(order, cache, crew, f"evaluate {model} {order.steps}")
            enter(outcome, court, model, str(order.steps), pictures)
    for model, order in reversed(orders):  # from the pipeline that is open
        if model != "undistilled":
            outcome.result["latency"][model][str(order.steps)] = timed(order, params)
    drawing.forget()


def ordered(
    params: Evaluate,
    sampling: Sampling,
    sigma_d: float,
    folders: Folders,
    prompts: list[Prompt],
    names: tuple[str, ...] = ("student", "undistilled", "teacher"),
) -> list[tuple[str, Order]]:
    """Returns what is drawn, by the names of the networks. Raises ValueError naming a folder that is no pipeline."""
    places = {name: generate.checked(getattr(folders, name)) for name in names}
    digests = {name: storage.digest(place) for name, place in places.items()}

    def order(place: str, network: Literal["student", "teacher"], steps: int) -> Order:
        at_once = drawing.at_once(sampling)
        own = sampling if network == "student" else sampling.model_copy(update={"teacher_steps": steps})
        folder, digest = places[place].resolve(), digests[place]  # a worker may start elsewhere
        return Order(folder, digest, network, own, sigma_d, steps, params.seed, "float32", at_once, prompts)

    students = [name for name in ("student", "undistilled") if name in places]
    teachers = [("teacher", sampling.teacher_steps), *(("teacher_fewer", k) for k in params.teacher_fewer_steps)]
    found = [(name, order(name, "student", k)) for name in students for k in protocol.STEPS]
    return found + [(name, order("teacher", "teacher", k)) for name, k in teachers if "teacher" in places]


def timed(order: Order, params: Evaluate) -> dict[str, float]:
    """Returns the times of an order's network, measured now, in this process."""
    loaded = drawing.opened(order)
    draw, steps = (loaded.student, order.steps) if order.network == "student" else (loaded.teacher, 1)
    return latency.measure(loaded, draw, order.prompts, steps, params.seed, params)


def summon(params: Evaluate, folder: Path, prompts: list[Prompt]) -> Court:
    """Returns the judges of data/models/judge, ready for these prompts."""
    path = folder / "reference.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run `dvc repro judge` to make it")
    with weights.readable(path, "run `dvc repro -f judge`"):
        reference = load_file(path)["features"]
    if len(reference) < FEWEST or len(prompts) < FEWEST:
        raise ValueError(
            f"data/raw: {len(prompts)} prompts and {len(reference)} real pictures to compare with, of each the Frechet "
            f"distance and its standard error need {FEWEST}; raise evaluate.prompts_per_task or prepare's eval share"
        )
    clip, judge = clip_judge.load(folder / "clip"), judges.load(params.judge, folder)
    judge(np.zeros((len(prompts), *BLANK), np.uint8), prompts)  # what cannot be judged ends the run before it draws
    texts = clip.captions([prompt.caption for prompt in prompts])
    name = "fid_scene_clip" if params.judge == "scenes" else "fid_corpus_clip"
    return Court(prompts, judge, clip, texts, reference, name)


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
