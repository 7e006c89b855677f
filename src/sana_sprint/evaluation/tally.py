"""Counts verdicts: the score of a set of pictures by task, overall and by group of prompts, as JSON. Evaluate's scores
and the quick scores of prune and distill are the same sums."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

from sana_sprint.maths import metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sana_sprint.evaluation.judges import Verdict
    from sana_sprint.evaluation.protocol import Prompt
    from sana_sprint.maths.metrics import Estimate

DIGITS = 6


def by_task(prompts: Sequence[Prompt], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Returns "tasks" (share of right pictures), "overall" (the mean of the tasks, as GenEval defines it) and
    the mean over prompts of each group there is, "seen" and "heldout"; {} without verdicts.
    """
    if not verdicts:
        return {}
    parts: dict[str, dict[str, list[bool]]] = {"task": defaultdict(list), "group": defaultdict(list)}
    for prompt, verdict in zip(prompts, verdicts, strict=True):
        parts["task"][prompt.task].append(verdict.right)
        parts["group"][prompt.group].append(verdict.right)
    tasks = {name: metrics.proportion(sum(right), len(right)) for name, right in parts["task"].items()}
    groups = {name: metrics.proportion(sum(right), len(right)) for name, right in parts["group"].items()}
    return {
        "overall": plain(metrics.average(list(tasks.values()))),
        "tasks": {name: plain(e) | {"n": len(parts["task"][name])} for name, e in tasks.items()},
    } | {name: plain(e) for name, e in groups.items()}


def mean(prompts: Sequence[Prompt], marks: Sequence[float]) -> Estimate:
    """Returns the mean over tasks of the mean mark of each task's prompts, as "overall" is."""
    tasks: dict[str, list[float]] = defaultdict(list)
    for prompt, mark in zip(prompts, marks, strict=True):
        tasks[prompt.task].append(mark)
    return metrics.average([metrics.mean(torch.tensor(values, dtype=torch.float64)) for values in tasks.values()])


def plain(estimate: Estimate) -> dict[str, float]:
    """Returns an estimate as JSON, rounded to six digits."""
    return {"value": round(estimate.value, DIGITS), "se": round(estimate.se, DIGITS)}
