"""The report's pictures: every prompt of the gallery sheets, with the verdicts and what the judge saw."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from PIL import Image

from sana_sprint import storage
from sana_sprint.evaluation import pages, protocol, sheets

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Grid:
    """The gallery sheets and verdicts that evaluate wrote for one size: what verdicts.json holds, and a function that
    returns the PNG bytes of the sheet <model>-<steps>."""

    def __init__(self, name: str, content: dict[str, Any], sheet: Callable[[str], bytes]) -> None:
        self.name, self.content, self.sheet = name, content, sheet
        self.sheets: dict[str, Image.Image] = {}

    @property
    def teacher_steps(self) -> str:
        """The step count of the teacher's pictures."""
        return str(next(iter(self.content["verdicts"]["teacher"])))

    def cell(self, model: str, steps: str, place: int) -> dict[str, Any]:
        """Returns a picture of the gallery as a data URI, what drew it, and its verdict (None without a judge)."""
        sheet = f"{model}-{steps}"
        if sheet not in self.sheets:
            self.sheets[sheet] = Image.open(io.BytesIO(self.sheet(sheet))).convert("RGB")
        verdicts = self.content["verdicts"][model][steps]
        return {
            "picture": pages.picture(sheets.cut(self.sheets[sheet], place, tuple(self.content["tile_px"]))),
            "model": self.name if model == "student" else model,
            "told": f"{self.name if model == 'student' else model}, {steps} step" + "s" * (steps != "1"),
            "verdict": verdicts[self.content["gallery"][place]] if verdicts else None,
        }


def read(folder: Path) -> Grid:
    """Returns the gallery of a folder that evaluate wrote, named after it."""
    content = storage.read_json(folder / "verdicts.json")
    return Grid(folder.name, content, lambda sheet: (folder / f"gallery/{sheet}.png").read_bytes())


def rows(grids: dict[str, Grid]) -> list[dict[str, Any]]:
    """Returns a row per prompt of the gallery: caption, task, group, and its cells in the order that people compare:
    the teacher, then every size at falling step counts. The order of prompts is that of `protocol.shown`: nobody
    picked them by their pictures."""
    first = next(iter(grids.values()))
    drawn = [(first, "teacher", first.teacher_steps)]
    drawn += [(grid, "student", steps) for grid in grids.values() for steps in protocol.COMPARED]
    return by_prompt(first, drawn)


def beside(before: Grid, after: Grid) -> list[dict[str, Any]]:
    """Returns the rows of two students under one protocol, both at each step count; [] where their prompts differ."""
    if any(before.content[key] != after.content[key] for key in ("prompts", "gallery")):
        return []
    return by_prompt(before, [(grid, "student", steps) for steps in protocol.COMPARED for grid in (before, after)])


def by_prompt(first: Grid, drawn: list[tuple[Grid, str, str]]) -> list[dict[str, Any]]:
    """Returns a row per prompt of the first gallery, with a cell for each (gallery, model, steps)."""
    return [
        first.content["prompts"][index] | {"cells": [grid.cell(model, steps, place) for grid, model, steps in drawn]}
        for place, index in enumerate(first.content["gallery"])
    ]


def tasks(shown: list[dict[str, Any]]) -> list[str]:
    """Returns the tasks of the rows in order, [] where a task is no more than its caption."""
    return sorted({row["task"] for row in shown if row["task"] != row["caption"]})
