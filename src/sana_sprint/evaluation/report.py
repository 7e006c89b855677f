"""Stage report: one HTML page that opens offline. Pictures first, then curves, then tables.

Everything is read from the metrics, grids and curves of earlier stages; pictures are embedded.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sana_sprint import storage
from sana_sprint.evaluation import folder_page, pages, plots, report_gallery, report_schedule, report_tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sana_sprint.config import Report

HERO = 6  # prompts of the strip at the top


def run(
    params: Report,
    data: Path,
    page: Path,
    plot_folder: Path,
    comparisons: Sequence[dict[str, Any]] = (),
    made: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, float]:
    """Writes the page, those of public GenEval in the folder `protocols` beside it, and the plots of training curves;
    returns how many sizes, pictures and curves it shows. `comparisons` are tables of other evaluations: title, words,
    head and rows; `made` the digests of all outputs of dvc.lock by their paths.
    """
    results = {path.stem: storage.read_json(path) for path in sorted((data / "metrics/evaluate").glob("*.json"))}
    if not results:
        raise ValueError(f"{data / 'metrics/evaluate'}: no scores; run `dvc repro evaluate` to make them")
    results = dict(sorted(results.items(), key=lambda item: item[0] != "small"))
    curves = write_curves(data / "metrics/curves", plot_folder)
    shown = pictures(params, list(results), data / "grids")
    content = {
        "title": params.title,
        "summary": report_tables.summary(results),
        "apart": report_tables.apart(results),
        "plots": score_plots(data / "plots", list(results)),
        "curves": [(path.stem, pages.embedded(path)) for path in curves],
        "score_tables": [report_tables.scores(size, result) for size, result in results.items()],
        "task_tables": [report_tables.tasks(size, result) for size, result in results.items()],
        "latency": report_tables.latency(results),
        "batches": report_tables.batches(results),
        "machine": next(iter(results.values()))["machine"],
        "schedules": report_schedule.schedules(data / "models/schedule", list(results)),
        "public": report_tables.public(results),
        "seen": folder_page.of_students(data / "grids", page.parent / "protocols"),
        "comparisons": comparisons,
        "ablation": report_tables.ablation(data / "reports/ablation/table.json"),
        "ablation_curves": [pages.embedded(path) for path in (data / "reports/ablation").glob("curves.png")],
        "stages": report_tables.stages(data / "metrics"),
        "protocol": report_tables.protocol(results),
        "lineage": report_tables.lineage(data) + report_tables.digests(results, made),
    }
    pages.write(page, "report.html.j2", content | shown)
    return {
        "sizes": len(results),
        "pictures": sum(len(row["cells"]) for row in shown["rows"]),
        "curves": len(curves),
    }


def pictures(params: Report, sizes: Sequence[str], folder: Path) -> dict[str, Any]:
    """Returns what the page says of pictures: the gallery, the strip at its top, and their facts."""
    grids = {size: report_gallery.read(folder / size) for size in sizes}
    rows = report_gallery.rows(grids)
    size, grid = list(grids.items())[-1]
    return {
        "rows": rows,
        "hero_size": size,
        "hero": [
            row | {"cells": [cell for cell in row["cells"] if cell["model"] in ("teacher", size)]}
            for row in rows[:HERO]
        ],
        "shown": params.prompts,
        "prompts": len(grid.content["prompts"]),
        "tasks": report_gallery.tasks(rows),
        "tile_px": grid.content["tile_px"],
        "size_px": grid.content["size_px"],
        "teacher_steps": grid.teacher_steps,
        "matched": [report_tables.matched(size, grid.content) for size, grid in grids.items()],
    }


def write_curves(source: Path, folder: Path) -> list[Path]:
    """Writes a plot per training that left curves, in the order of the road; returns their paths."""
    road = ("foundation", "teacher", "prune", "distill")
    found = sorted(
        source.glob("*.json"),
        key=lambda p: (next((i for i, r in enumerate(road) if p.stem.startswith(r)), 9), p.stem),
    )
    with storage.whole_folder(folder) as unfinished:
        for path in found:
            plots.curves(storage.read_json(path), unfinished / f"{path.stem}.png")
    return [folder / f"{path.stem}.png" for path in found]


def score_plots(folder: Path, sizes: list[str]) -> list[tuple[str, str, str]]:
    """Returns (size, what it shows, data URI) of evaluate's plots."""
    kinds = {
        "pareto": "quality against the time of one picture",
        "scores": "scores against the number of steps",
        "tasks": "score per task",
        "schedule": "search of the times: score against the new time, one panel per step count",
    }
    paths = [(size, words, folder / f"{kind}-{size}.png") for size in sizes for kind, words in kinds.items()]
    return [(size, words, pages.embedded(path)) for size, words, path in paths if path.is_file()]
