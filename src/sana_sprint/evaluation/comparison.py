"""The page of a comparison of two students: scores, tasks, and their pictures side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sana_sprint.evaluation import pages, protocol, report_gallery, report_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    Scores = dict[str, dict[str, dict[str, Any]]]  # by network, steps and name, as in evaluate's JSON


def write(
    page: Path,
    words: str,
    table: dict[str, Any],
    scores: Sequence[tuple[str, Scores]],
    grids: Sequence[report_gallery.Grid | None],
) -> None:
    """Writes the page of two evaluations, named in `scores`; it shows pictures where both have a gallery of the same
    prompts."""
    first, second = grids
    rows = report_gallery.beside(first, second) if first and second else []
    content = {
        "title": f"{scores[0][0]} against {scores[1][0]}",
        "words": words,
        "scores": table | {"title": "Scores"},
        "tasks": report_tables.task_bars("Tasks", columns(scores)),
        "rows": rows,
        "task_names": report_gallery.tasks(rows),
        "tile_px": first.content["tile_px"] if first else None,
        "size_px": first.content["size_px"] if first else None,
    }
    pages.write(page, "comparison.html.j2", content)


def grid(name: str, content: dict[str, Any] | None, read: Callable[[str], bytes] | None) -> report_gallery.Grid | None:
    """Returns the gallery of an evaluation whose verdicts and pictures can be read, else None."""
    if content is None or read is None or "gallery" not in content:
        return None
    return report_gallery.Grid(name, content, lambda sheet: read(f"gallery/{sheet}.png"))


def columns(scores: Sequence[tuple[str, Scores]]) -> list[tuple[str, dict[str, Any]]]:
    """Returns the students' scores at each step count, side by side; without tasks where one of them lacks them."""
    found = [
        (f"{k} step{'s' * (k != '1')}, {name}", one["student"][k]) for k in protocol.COMPARED for name, one in scores
    ]
    asked = [set(score.get("tasks", {})) for _, score in found]
    return found if all(tasks == asked[0] for tasks in asked) else [(name, {}) for name, _ in found]
