"""What is measured, and on what: the prompts, the noise and every setting a score depends on, with one
digest.

Scores compare only under equal protocol digests. Noise is a pure function of (seed, prompt, step), never of a
batch.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from itertools import cycle, islice, zip_longest
from typing import TYPE_CHECKING, Any

import torch

from sana_sprint import storage
from sana_sprint.data import manifest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from sana_sprint.config import Evaluate, Sampling

STEPS = (1, 2, 3, 4)
COMPARED = ("4", "2", "1")  # that people see side by side


@dataclass(frozen=True)
class Prompt:
    """A caption to draw: its number (which fixes its noise), the manifest's key, task and group, and what the
    caption demands of a picture ({} when unknown).
    """

    index: int
    key: str
    caption: str
    task: str
    group: str
    demand: dict[str, Any]

    def public(self) -> dict[str, Any]:
        """Returns what the protocol records of a prompt."""
        return {"key": self.key, "caption": self.caption, "task": self.task, "group": self.group}


def prompts(rows: Sequence[manifest.Row], params: Evaluate) -> list[Prompt]:
    """Returns `prompts_per_task` prompts a task from the evaluation rows, ordered by task and key. A task
    with held-out rows gives them half of its prompts as far as they reach. For the judge `classes` a task is
    a caption, whose rows repeat when they are fewer. Raises ValueError when there are no evaluation rows.
    """
    if not rows:
        raise ValueError("data/raw: the eval split is empty; give prepare more pictures or a larger eval share")
    tasks: dict[str, list[manifest.Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.key):
        tasks[row.caption if params.judge == "classes" else row.task].append(row)
    chosen: list[tuple[str, manifest.Row]] = []
    for task, members in sorted(tasks.items()):
        if params.judge == "classes":
            picked = list(islice(cycle(members), params.prompts_per_task))
        else:
            picked = halves(members, params.prompts_per_task)
        chosen += [(task, row) for row in picked]
    return [
        Prompt(index, row.key, row.caption, task, row.group, manifest.truth(row).get("demand", {}))
        for index, (task, row) in enumerate(chosen)
    ]


def halves(rows: list[manifest.Row], number: int) -> list[manifest.Row]:
    """Returns up to `number` rows in order, half of them held out where there are any; a short half is filled
    up from the other one.
    """
    heldout = [row for row in rows if row.group == "heldout"]
    seen = [row for row in rows if row.group != "heldout"]
    take = min(len(heldout), max(number // 2, number - len(seen)))
    return sorted(seen[: number - take] + heldout[:take], key=lambda row: row.key)


def shown(chosen: Sequence[Prompt], number: int) -> list[Prompt]:
    """Returns the prompts that picture grids show: tasks in turn, within a task seen and held-out in turn
    (every other task starts with a held-out one), each in order. Nobody picks them by their pictures.
    """
    tasks: dict[str, dict[str, list[Prompt]]] = defaultdict(lambda: defaultdict(list))
    for prompt in chosen:
        tasks[prompt.task][prompt.group].append(prompt)
    in_turn = [
        [p for pair in zip_longest(*(groups[g] for g in sorted(groups, reverse=place % 2 > 0))) for p in pair if p]
        for place, groups in enumerate(tasks.values())
    ]
    return [p for row in zip_longest(*in_turn) for p in row if p][:number]


def noise(seed: int, prompt: int, step: int, shape: Sequence[int]) -> Tensor:
    """Returns the unit normal noise (C, H, W) of a prompt's step, drawn on the CPU from its own generator."""
    name = hashlib.sha256(f"{seed}/{prompt}/{step}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(name[:8], "big") >> 1)
    return torch.randn(tuple(shape), generator=generator)


def describe(
    chosen: Sequence[Prompt],
    params: Evaluate,
    sampling: Sampling,
    sigma_d: float,
    judge: dict[str, Any],
    at_once: int,
) -> dict[str, Any]:
    """Returns the protocol as JSON types: everything a score depends on but the weights under test and their times.
    `judge` tells of the judges' weights and preprocessing, `at_once` of the pictures in a call of a network.
    """
    return {
        "prompts": [prompt.public() for prompt in chosen],
        "demands_sha256": storage.digest_of([prompt.demand for prompt in chosen]),
        "samples": {"pictures": len(chosen), "pictures_per_prompt": 1},
        "seed": params.seed,
        "noise": "torch.randn from a CPU generator seeded by the first 63 bits of sha256('seed/prompt/step'), float32",
        "precision": precision(),
        "pictures_a_call": at_once,
        "judge": judge,
        "frechet": "all pictures scored, against the features of the whole eval split; squared distance, "
        "standard error by delete-a-group jackknife over the generated pictures",
        "student": {"times": "of the student's own schedule", "guidance": sampling.guidance, "sigma_d": sigma_d},
        "teacher": teacher(sampling) | {"fewer_steps": params.teacher_fewer_steps},
        "text": {"max_tokens": sampling.max_tokens, "instruction": sampling.instruction},
        "size_px": {"height": sampling.height_px, "width": sampling.width_px},
    }


def precision() -> dict[str, Any]:
    """Returns in which numbers pictures are drawn and scored."""
    return {
        "networks": "float32",
        "matmul": torch.get_float32_matmul_precision(),
        "convolutions_tf32": torch.backends.cudnn.allow_tf32,  # on a GPU alone
        "pictures": "uint8, clamped and rounded",
        "scores": "float64",
    }


def teacher(sampling: Sampling) -> dict[str, float]:
    """Returns how a teacher draws."""
    return {
        "steps": sampling.teacher_steps,
        "shift": sampling.teacher_shift,
        "guidance": sampling.teacher_guidance,
    }


def digest(protocol: dict[str, Any]) -> str:
    """Returns the protocol's sha256."""
    return storage.digest_of(protocol)
