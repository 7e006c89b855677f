"""Judges: does a picture show what its caption asks for? `scenes` parses the picture exactly, `classes` reads
it with a classifier trained on held-out pictures, `none` gives no verdicts. All have one signature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sana_sprint import storage
from sana_sprint.evaluation import scene_parser
from sana_sprint.evaluation.protocol import Prompt

if TYPE_CHECKING:
    from pathlib import Path


class Verdict(NamedTuple):
    """Whether a picture is right, what is wrong when it is not ("" when it is right), and what was seen in it: objects
    of "label" and "box" [left, top, right, bottom] in pixels, None where the judge knows no place.
    """

    right: bool
    reason: str
    seen: list[dict[str, Any]]


Judge = Callable[[np.ndarray, Sequence[Prompt]], list[Verdict]]  # pictures (N, H, W, 3) uint8, their prompts


def scenes(pictures: np.ndarray, prompts: Sequence[Prompt]) -> list[Verdict]:
    """Returns the exact parser's verdicts. Raises ValueError for a prompt without a demand, or with one that the parser
    does not know.
    """
    blank = next((prompt.key for prompt in prompts if not prompt.demand), None)
    if blank is not None:
        raise ValueError(f"evaluate.judge: 'scenes' needs a demand in the truth of {blank}; choose classes or none")
    for prompt in prompts:
        if odd := scene_parser.unknown(prompt.demand):
            raise ValueError(
                f"evaluate.judge: 'scenes' cannot judge {prompt.key} of task {prompt.task!r}, it demands {odd}; "
                f"mend the caption's truth or choose classes or none"
            )
    parsed = [scene_parser.parse(picture) for picture in pictures]
    faults = [scene_parser.fault(found, prompt.demand) for found, prompt in zip(parsed, prompts, strict=True)]
    return [Verdict(not fault, fault, [f.seen() for f in found]) for fault, found in zip(faults, parsed, strict=True)]


def classes(folder: Path) -> Judge:
    """Returns the judge that reads a picture as one of the captions its classifier knows. It raises ValueError for a
    prompt with another caption.
    """
    from sana_sprint.evaluation import classifier

    reader = classifier.load(folder)

    def judge(pictures: np.ndarray, prompts: Sequence[Prompt]) -> list[Verdict]:
        other = next((prompt for prompt in prompts if prompt.caption not in reader.captions), None)
        if other is not None:
            raise ValueError(
                f"evaluate.judge: 'classes' cannot judge {other.key}, its classifier in {folder} never saw the caption "
                f"{other.caption!r}; run `dvc repro judge` again or choose none"
            )
        read = reader.read(pictures)
        faults = [
            "" if caption == p.caption else f"read as {caption}" for caption, p in zip(read, prompts, strict=True)
        ]
        seen = [[{"label": f"read as: {caption}", "box": None}] for caption in read]
        return [Verdict(not fault, fault, one) for fault, one in zip(faults, seen, strict=True)]

    return judge


def none(pictures: np.ndarray, prompts: Sequence[Prompt]) -> list[Verdict]:  # noqa: ARG001
    """Returns no verdicts: nothing is known that could judge these pictures."""
    return []


def described(kind: str, folder: Path) -> dict[str, Any]:
    """Returns what a protocol records of the judge of a kind: the weights in data/models/judge by digest, and the rules
    of this code by which it sees."""
    weighty = (path for path in sorted(folder.iterdir()) if path.name != "judge.json")
    told: dict[str, Any] = {"kind": kind, "digest": storage.digest(folder)}
    told |= {"weights": {path.stem: storage.digest(path) for path in weighty}}
    if kind == "scenes":
        told |= {"rules": scene_parser.RULES}
    if kind == "classes":
        from sana_sprint.evaluation import classifier

        told |= {"classifier_resize": classifier.RESIZE}
    return told


def load(kind: str, folder: Path) -> Judge:
    """Returns the judge that evaluate.judge names; `folder` is data/models/judge."""
    return {
        "scenes": lambda: scenes,
        "classes": lambda: classes(folder / "classifier"),
        "none": lambda: none,
    }[kind]()
