"""The page of a folder that GenEval's judge looked at: every picture with its boxes and the reason of a failure.

The stage report makes such pages of what evaluate kept of its students, by public protocols.
"""

from __future__ import annotations

import os
from collections import defaultdict
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sana_sprint import storage
from sana_sprint.evaluation import folder_pictures, pages, report_gallery, report_tables

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def of_students(grids: Path, folder: Path) -> list[str]:
    """Writes a page per size, protocol and step count of which evaluate kept what the judge saw; returns their names.
    The pictures are evaluate's tiles, which stay in its folder."""
    names = []
    with storage.whole_folder(folder) as unfinished:
        for place in sorted(grids.resolve().glob("*/protocols/*/")):
            found = storage.read_json(place / folder_pictures.SCORED)
            size, name, steps = place.parents[1].name, place.name, found["drawn"]["steps"]
            title = f"GenEval of {size}, {steps} step" + "s" * (steps != 1)
            write(unfinished / f"{size}-{name}.html", place / folder_pictures.TILES, found, found["looked"], title)
            names.append(f"{size}-{name}.html")
    return names


def write(
    page: Path, folder: Path, found: dict[str, Any], looked: Sequence[dict[str, Any]], title: str | None = None
) -> None:
    """Writes the page beside the scores. The pictures stay where they are and load as the reader comes to them."""
    size = found["protocol"]["size_px"]
    shown = rows(looked, quote(os.path.relpath(folder, page.parent)))
    content = {
        "title": title or f"GenEval of {folder.name}",
        "words": f"{found['pictures']} pictures, protocol {found['protocol_digest'][:12]}.",
        "overall": report_tables.with_error(found["scores"]["overall"]),
        "tasks": report_tables.task_bars("Tasks", [("right pictures", found["scores"])]),
        "rows": shown,
        "task_names": report_gallery.tasks(shown),
        "size_px": [size["width"], size["height"]],
    }
    pages.write(page, "geneval.html.j2", content)


def rows(looked: Sequence[dict[str, Any]], folder: str) -> list[dict[str, Any]]:
    """Returns a row of the gallery per prompt; its cells are the prompt's pictures, numbered from one."""
    prompts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in looked:
        prompts[one["picture"].partition("/")[0]].append(one)
    return [
        {
            "caption": pictures[0]["prompt"],
            "task": pictures[0]["tag"],
            "group": "seen",
            "cells": [cell(one, number, folder) for number, one in enumerate(pictures, start=1)],
        }
        for pictures in prompts.values()
    ]


def cell(one: dict[str, Any], number: int, folder: str) -> dict[str, Any]:
    """Returns a picture with what was seen in it, and how sure the detector was."""
    seen = [{"label": f"{found['class']} {found['score']:.2f}", "box": found["box"]} for found in one["seen"]]
    return {
        "picture": f"{folder}/{quote(one['picture'])}",
        "told": f"picture {number}",
        "verdict": {"right": one["right"], "reason": one["reason"], "seen": seen},
    }
