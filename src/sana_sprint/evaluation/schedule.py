"""Stage schedule: the times of a student's 1 to 4 steps, the only free parameter per step count, found greedily, one
time after the other (arXiv:2503.09641, section 4.1 and table 7).

The first time is that of one step. Every further one is put where it helps most, between the times before it or after
them, so that the lists of more steps hold those of fewer. Captions and noise are none of evaluate's. Pictures of one
list differ from those of the next by their times alone, and neighbouring times share their score: what wins is the
middle of the best stretch, not the luckiest point.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from sana_sprint import config, storage
from sana_sprint.data import manifest
from sana_sprint.evaluation import clip_judge, generate, judges, protocol, tally
from sana_sprint.maths import metrics, sample, trigflow
from sana_sprint.models import networks, threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from sana_sprint.config import Evaluate, Sampling, Schedule
    from sana_sprint.evaluation.generate import Loaded
    from sana_sprint.evaluation.protocol import Prompt
    from sana_sprint.maths.metrics import Estimate

    Times = tuple[float, ...]  # falling, without the closing 0
    Score = Callable[[Times], Estimate]
    Marks = Callable[[np.ndarray], list[float]]

STEPS = max(protocol.STEPS)
PREFIXES_KEPT = 2 * STEPS


@dataclass(frozen=True)
class Trial:
    """A list of times with its new one, its score and what it comes to beside its neighbours."""

    times: Times
    new: float
    score: Estimate
    smoothed: float


@dataclass(frozen=True)
class Student:
    """Where the student lies and what it is judged by."""

    pipeline: Path
    raw: Path
    judge: Path


def run(params: Schedule, judged: Evaluate, sampling: Sampling, sigma_d: float, student: Student) -> dict[str, Any]:
    """Returns the lists to draw with, those found, the trials behind them, and scores on captions kept apart of lists
    found, of the profile's and of schedule.baseline, with the gain of what is drawn with over the last, as JSON, the
    same on any number of cores. A list that does not gain more than a standard error over that of sampling.times where
    it was sought, where it looks at its best, is not taken: the profile's stays."""
    if params.seed == judged.seed:
        raise ValueError(f"schedule.seed: evaluate draws its noise by {params.seed} too; choose another")
    with threads.one():
        return compared(params, judged, sampling, sigma_d, student)


def compared(
    params: Schedule, judged: Evaluate, sampling: Sampling, sigma_d: float, student: Student
) -> dict[str, Any]:
    """Returns what `run` does, computed with the threads there are."""
    rows, shared = training_rows(student.raw, judged)
    tried, checked = prompts(rows, params, judged)
    loaded = generate.load(student.pipeline, sampling, sigma_d)
    measure, marks = marks_of(judged.judge, student.judge, tried)
    draws, progress = Draws(loaded, tried, params.seed, judged.batch), tqdm(desc="schedule", mininterval=3)

    def score(times: Times) -> Estimate:
        progress.update()
        return tally.mean(tried, marks(draws.pictures(times)))

    curves = search(score, params, STEPS)
    found = {str(k): best(trials).times for k, trials in enumerate(curves, 1)}
    own, baseline = ({k: tuple(times[:-1]) for k, times in of.items()} for of in (sampling.times, params.baseline))
    lists = {k: {"found": found[k], "profile": own.get(k), "baseline": baseline.get(k)} for k in found}

    def scores(asked: list[Prompt], k: str, which: str, over: str) -> dict[str, dict[str, float]]:
        return gain(
            asked, {name: marks(draws.pictures(times)) for name, times in lists[k].items() if times}, which, over
        )

    on_tried = {k: scores(tried, k, "found", "profile") for k in found}
    drawn = taken(on_tried)
    draws, marks = Draws(loaded, checked, params.seed, judged.batch), marks_of(judged.judge, student.judge, checked)[1]
    described = describe(params, judged, sampling, sigma_d, student.judge) | {
        name: storage.digest_of([prompt.public() | {"demand": prompt.demand} for prompt in asked])
        for name, asked in (("tried", tried), ("checked", checked))
    }
    return {
        "protocol": described,
        "protocol_digest": protocol.digest(described),
        "times": {k: [*(lists[k][name] or ()), 0.0] for k, name in drawn.items()},
        "found": {k: [*times, 0.0] for k, times in found.items()},
        "profile": {k: times for k, times in sampling.times.items() if k in found},
        "baseline": params.baseline,
        "measure": measure,
        "captions": {
            "tried": len(tried),
            "checked": len(checked),
            "in_both": len({p.caption for p in tried} & {p.caption for p in checked}),
            "shared_with_evaluate": shared,
        },
        "trials": {str(k): [asdict(t) | {"score": tally.plain(t.score)} for t in ts] for k, ts in enumerate(curves, 1)},
        "gains_where_sought": on_tried,
        "gains": {k: scores(checked, k, name, "baseline") for k, name in drawn.items()},
    }


def describe(params: Schedule, judged: Evaluate, sampling: Sampling, sigma_d: float, judge: Path) -> dict[str, Any]:
    """Returns the protocol of the search as JSON types: all that its scores depend on but the student, its times and
    the captions."""
    return {
        "seed": params.seed,
        "pictures_a_call": judged.batch,
        "judge": judges.described(judged.judge, judge) | {"clip_resize": clip_judge.RESIZE},
        "precision": protocol.precision(),
        "student": {"guidance": sampling.guidance, "sigma_d": sigma_d},
        "text": {"max_tokens": sampling.max_tokens, "instruction": sampling.instruction},
        "size_px": {"height": sampling.height_px, "width": sampling.width_px},
    }


def headline(found: dict[str, Any]) -> dict[str, float]:
    """Returns what MLflow charts of a schedule: both scores and the gain by step count (`gain/2_step`), with their
    standard errors (`standard_error/gain_2_step`)."""
    parts = [(name, k, part) for k, told in found["gains"].items() for name, part in told.items()]
    values = {f"{name}/{k}_step": part["value"] for name, k, part in parts}
    return values | {f"standard_error/{name}_{k}_step": part["se"] for name, k, part in parts}


def taken(gains: dict[str, dict[str, dict[str, float]]]) -> dict[str, str]:
    """Returns per step count which list to draw with: the one found, but the profile's where the gain over it is within
    its standard error."""
    gain_of = {k: told.get("gain") for k, told in gains.items()}
    return {k: "profile" if gain and gain["value"] <= gain["se"] else "found" for k, gain in gain_of.items()}


def sampling_by(path: Path, sampling: Sampling) -> Sampling:
    """Returns the sampling with the lists of a student's schedule. Raises ValueError naming the file."""
    try:
        times = storage.read_json(path)["times"]
        config.fall_to_zero("times", times)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: no lists of times: {error}; run `dvc repro schedule` again") from None
    return sampling.model_copy(update={"times": times})


def training_rows(raw: Path, judged: Evaluate) -> tuple[list[manifest.Row], int]:
    """Returns the training rows whose captions evaluate does not ask for. A task that has no others keeps its rows;
    their captions are counted."""
    asked = {prompt.caption for prompt in protocol.prompts(manifest.read(raw, "eval"), judged)}
    rows = manifest.read(raw, "train")
    others = [row for row in rows if row.caption not in asked]
    tasks = {row.task for row in others}
    shared = [row for row in rows if row.task not in tasks]
    if judged.judge == "classes":  # every caption is a task
        others, shared = [], rows
    return others + shared, len({row.caption for row in shared})


def prompts(rows: list[manifest.Row], params: Schedule, judged: Evaluate) -> tuple[list[Prompt], list[Prompt]]:
    """Returns the captions to search on and others to check on: every other one of a task; of a task with a single
    caption, every other of its rows, which differ in noise alone."""
    both = protocol.prompts(rows, judged.model_copy(update={"prompts_per_task": 2 * params.prompts_per_task}))
    places: dict[str, dict[str, int]] = {}
    for prompt in both:
        places.setdefault(prompt.task, {}).setdefault(prompt.caption, len(places[prompt.task]))
    halves: tuple[list[Prompt], list[Prompt]] = ([], [])
    for number, prompt in enumerate(both):
        captions = places[prompt.task]
        halves[(captions[prompt.caption] if len(captions) > 1 else number) % 2].append(prompt)
    if not all(halves):
        raise ValueError("data/raw: too few training captions to search times on; give prepare more pictures")
    return halves


def marks_of(kind: str, folder: Path, asked: Sequence[Prompt]) -> tuple[str, Marks]:
    """Returns what is measured, and the function that marks the pictures of these prompts: 1 for a right one and 0 for
    others, or without a judge of right and wrong the CLIP score."""
    if kind != "none":
        judge = judges.load(kind, folder)
        return "overall", lambda pictures: [float(verdict.right) for verdict in judge(pictures, asked)]
    clip = clip_judge.load(folder / "clip")
    texts = clip.captions([prompt.caption for prompt in asked])
    return "clip_score", lambda pictures: metrics.clip_scores(clip.pictures(pictures), texts).tolist()


def gain(asked: Sequence[Prompt], marks: dict[str, list[float]], which: str, over: str) -> dict[str, dict[str, float]]:
    """Returns the score of every list and, where both are there, as `gain` that of one of them over another, paired by
    prompt, with standard errors."""
    if which in marks and over in marks:
        marks = marks | {"gain": [a - b for a, b in zip(marks[which], marks[over], strict=True)]}
    return {name: tally.plain(tally.mean(asked, values)) for name, values in marks.items()}


def search(score: Score, params: Schedule, steps: int) -> list[list[Trial]]:
    """Returns the trials of each step count, 1 to `steps`; the list found is that of `best`."""
    curves = [smoothed([((t,), t) for t in sorted(params.first, reverse=True)], score)]
    while len(curves) < steps:
        found = best(curves[-1]).times
        new = [t for t in sorted(params.later, reverse=True) if t < found[0] and t not in found]
        if not new:
            raise ValueError(f"schedule.later: no time is left to put below {found}; name more")
        curves.append(smoothed([(tuple(sorted((*found, t), reverse=True)), t) for t in new], score))
    return curves


def smoothed(lists: Sequence[tuple[Times, float]], score: Score) -> list[Trial]:
    """Returns the trials of neighbouring lists, each smoothed with weights 1, 2, 1 (at the ends 2, 1)."""
    scores = [score(times) for times, _ in lists]
    values = np.array([one.value for one in scores])
    kernel = np.array([1.0, 2.0, 1.0])
    smooth = np.convolve(values, kernel)[1:-1] / np.convolve(np.ones(len(values)), kernel)[1:-1]
    rows = zip(lists, scores, smooth.tolist(), strict=True)
    return [Trial(times, new, one, value) for (times, new), one, value in rows]


def best(trials: Sequence[Trial]) -> Trial:
    """Returns the trial of the highest smoothed score; of equals the one of the higher time."""
    return max(trials, key=lambda trial: (trial.smoothed, trial.new))


class Draws:
    """Pictures of a student by any list of times, for fixed prompts and noises. Latents of the last prefixes of lists
    are kept: a list that goes on from one of them costs its further steps alone."""

    def __init__(self, loaded: Loaded, asked: Sequence[Prompt], seed: int, batch: int) -> None:
        self.loaded = loaded
        parts = [asked[start : start + batch] for start in range(0, len(asked), batch)]
        with torch.no_grad():
            self.texts = [loaded.text([p.caption for p in part]) for part in parts]
        self.noises = [generate.noises(loaded, part, STEPS, seed) for part in parts]
        self.kept: OrderedDict[Times, list[Tensor]] = OrderedDict()

    @torch.no_grad()
    def pictures(self, times: Times) -> np.ndarray:
        """Returns a picture per prompt (N, H, W, 3) uint8."""
        return np.concatenate([self.loaded.decode(x_0 / self.loaded.sigma_d) for x_0 in self.latents(times)])

    @torch.no_grad()
    def latents(self, times: Times) -> list[Tensor]:
        """Returns x_0 (B, C, H, W) of scale sigma_d per batch."""
        start = next((k for k in range(len(times), 0, -1) if times[:k] in self.kept), 0)
        for step in range(start, len(times)):
            before = self.kept.get(times[:step], [None] * len(self.texts))
            self.kept[times[: step + 1]] = [self.step(n, x_0, step, times[step]) for n, x_0 in enumerate(before)]
        for k in range(len(times), 0, -1):  # the shortest, which most lists go on from, are forgotten last
            if times[:k] in self.kept:
                self.kept.move_to_end(times[:k])
        while len(self.kept) > PREFIXES_KEPT:
            self.kept.popitem(last=False)
        return self.kept[times]

    def step(self, number: int, x_0: Tensor | None, step: int, time: float) -> Tensor:
        """Returns what a step makes of the latents of batch `number`."""
        loaded, text = self.loaded, self.texts[number]
        guidance_B = torch.full((len(text),), loaded.sampling.guidance, device=loaded.device)
        F = trigflow.from_flow(networks.flow_velocity(loaded.pipe.transformer, text, guidance_B))
        return sample.consistency_step(F, x_0, self.noises[number][step].to(loaded.device), time, loaded.sigma_d)
