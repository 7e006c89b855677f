"""The report's pictures: every prompt of the gallery sheets, with the verdicts and what the judge saw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from PIL import Image

from sana_sprint import storage
from sana_sprint.evaluation import pages, protocol, sheets

if TYPE_CHECKING:
    from pathlib import Path


class Grid:
    """The sheets and verdicts that evaluate wrote for one size."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.content = storage.read_json(folder / "verdicts.json")
        self.size = folder.name
        self.sheets: dict[str, Image.Image] = {}

    @property
    def teacher_steps(self) -> str:
        """The step count of the teacher's pictures."""
        return str(next(iter(self.content["verdicts"]["teacher"])))

    def cell(self, model: str, steps: str, place: int) -> dict[str, Any]:
        """Returns a picture of the gallery as a data URI, what drew it, and its verdict (None without a judge)."""
        name = f"{model}-{steps}"
        if name not in self.sheets:
            with Image.open(self.folder / f"gallery/{name}.png") as image:
                self.sheets[name] = image.convert("RGB")
        verdicts = self.content["verdicts"][model][steps]
        return {
            "picture": pages.picture(sheets.cut(self.sheets[name], place, tuple(self.content["tile_px"]))),
            "model": self.size if model == "student" else model,
            "told": f"{self.size if model == 'student' else model}, {steps} step" + "s" * (steps != "1"),
            "verdict": verdicts[self.content["gallery"][place]] if verdicts else None,
        }


def rows(grids: dict[str, Grid]) -> list[dict[str, Any]]:
    """Returns a row per prompt of the gallery: caption, task, group, and its cells in the order that people compare:
    the teacher, then every size at falling step counts. The order of prompts is that of `protocol.shown`: nobody
    picked them by their pictures."""
    first = next(iter(grids.values()))
    found = []
    for place, index in enumerate(first.content["gallery"]):
        cells = [first.cell("teacher", first.teacher_steps, place)]
        cells += [grid.cell("student", steps, place) for grid in grids.values() for steps in protocol.COMPARED]
        found.append(first.content["prompts"][index] | {"cells": cells})
    return found


def tasks(shown: list[dict[str, Any]]) -> list[str]:
    """Returns the tasks of the rows in order, [] where a task is no more than its caption."""
    return sorted({row["task"] for row in shown if row["task"] != row["caption"]})
