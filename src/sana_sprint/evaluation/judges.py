"""Judges: does a picture show what its caption asks for? `scenes` parses the picture exactly, `classes` reads
it with a classifier trained on held-out pictures, `none` gives no verdicts. All have one signature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sana_sprint.evaluation import scene_parser
from sana_sprint.evaluation.protocol import Prompt

if TYPE_CHECKING:
    from pathlib import Path


class Verdict(NamedTuple):
    """Whether a picture is right, and what is wrong when it is not ("" when it is right)."""

    right: bool
    reason: str


Judge = Callable[[np.ndarray, Sequence[Prompt]], list[Verdict]]  # pictures (N, H, W, 3) uint8, their prompts


def scenes(pictures: np.ndarray, prompts: Sequence[Prompt]) -> list[Verdict]:
    """Returns the exact parser's verdicts. Raises ValueError for a prompt without a demand."""
    blank = next((prompt.key for prompt in prompts if not prompt.demand), None)
    if blank is not None:
        raise ValueError(f"evaluate.judge: 'scenes' needs a demand in the truth of {blank}; choose classes or none")
    return [Verdict(*scene_parser.judge(x, p.demand)) for x, p in zip(pictures, prompts, strict=True)]


def classes(folder: Path) -> Judge:
    """Returns the judge that reads a picture as one of the captions its classifier knows."""
    from sana_sprint.evaluation import classifier

    reader = classifier.load(folder)

    def judge(pictures: np.ndarray, prompts: Sequence[Prompt]) -> list[Verdict]:
        read = reader.read(pictures)
        pairs = zip(read, prompts, strict=True)
        return [
            Verdict(caption == p.caption, "" if caption == p.caption else f"read as {caption}") for caption, p in pairs
        ]

    return judge


def none(pictures: np.ndarray, prompts: Sequence[Prompt]) -> list[Verdict]:  # noqa: ARG001
    """Returns no verdicts: nothing is known that could judge these pictures."""
    return []


def load(kind: str, folder: Path) -> Judge:
    """Returns the judge that evaluate.judge names; `folder` is data/models/judge."""
    return {
        "scenes": lambda: scenes,
        "classes": lambda: classes(folder / "classifier"),
        "none": lambda: none,
    }[kind]()
