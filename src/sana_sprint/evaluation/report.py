"""Stage report: one HTML page that opens offline. Pictures first, then curves, then tables.

Everything is read from the metrics, grids and curves of earlier stages; pictures are embedded.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from sana_sprint import storage
from sana_sprint.evaluation import pages, plots, sheets
from sana_sprint.maths import metrics

if TYPE_CHECKING:
    from sana_sprint.config import Report

COMPARED = ("4", "2", "1")
SCORE_NAMES = {
    "overall": "overall",
    "seen": "seen",
    "heldout": "held out",
    "fid_scene_clip": "FID (scene CLIP)",
    "fid_corpus_clip": "FID (corpus CLIP)",
    "clip_score": "CLIP score",
}


def run(params: Report, data: Path, page: Path, plot_folder: Path) -> dict[str, float]:
    """Writes the page and the plots of training curves; returns how many sizes, pictures and curves it
    shows.
    """
    results = {path.stem: storage.read_json(path) for path in sorted((data / "metrics/evaluate").glob("*.json"))}
    if not results:
        raise ValueError(f"{data / 'metrics/evaluate'}: no scores; run `dvc repro evaluate` to make them")
    results = dict(sorted(results.items(), key=lambda item: item[0] != "small"))
    grids = {size: Grid(data / "grids" / size) for size in results}
    curves = write_curves(data / "metrics/curves", plot_folder)
    rows = pictures(grids, params.prompts)
    content = {
        "title": params.title,
        "rows": rows,
        "sizes": list(results),
        "teacher_steps": next(iter(next(iter(results.values()))["scores"]["teacher"])),
        "compared": COMPARED,
        "summary": summary(results),
        "plots": score_plots(data / "plots", list(results)),
        "curves": [(path.stem, pages.embedded(path)) for path in curves],
        "score_tables": [score_table(size, result) for size, result in results.items()],
        "task_tables": [task_table(size, result) for size, result in results.items()],
        "matched": [matched(size, grid.content) for size, grid in grids.items()],
        "latency": latency_rows(results),
        "batches": batches(results),
        "machine": next(iter(results.values()))["machine"],
        "stages": stage_metrics(data / "metrics"),
        "protocol": protocol_facts(results),
        "lineage": lineage(data),
    }
    pages.write(page, "report.html.j2", content)
    return {
        "sizes": len(results),
        "pictures": len(rows) * (1 + len(COMPARED) * len(results)),
        "curves": len(curves),
    }


class Grid:
    """The sheets and verdicts that evaluate wrote for one size."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.content = storage.read_json(folder / "verdicts.json")

    def tile(self, sheet: str, number: int) -> str:
        """Returns a tile of a sheet as a data URI."""
        with Image.open(self.folder / f"{sheet}.png") as image:
            return pages.data_uri(sheets.cut(image, number, tuple(self.content["tile_px"])))

    def verdict(self, model: str, steps: str, number: int) -> dict[str, Any] | None:
        """Returns the verdict on a shown picture, or None where no judge gave one."""
        verdicts = self.content["verdicts"][model][steps]
        return verdicts[self.content["shown"][number]] if verdicts else None


def pictures(grids: dict[str, Grid], number: int) -> list[dict[str, Any]]:
    """Returns a row per prompt: caption, task, group, the teacher's cell and a list of cells per size."""
    first = next(iter(grids.values()))
    teacher_steps = next(iter(first.content["verdicts"]["teacher"]), "teacher")
    rows = []
    for place, index in enumerate(first.content["shown"][:number]):
        prompt = first.content["prompts"][index]
        row = dict(prompt) | {"teacher": cell(first, "teacher", "teacher", teacher_steps, place)}
        row["sizes"] = {
            size: [cell(grid, f"{steps}_step", "student", steps, place) for steps in COMPARED]
            for size, grid in grids.items()
        }
        rows.append(row)
    return rows


def cell(grid: Grid, sheet: str, model: str, steps: str, place: int) -> dict[str, Any]:
    """Returns a picture with its verdict."""
    return {"picture": grid.tile(sheet, place), "steps": steps, "verdict": grid.verdict(model, steps, place)}


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


def with_error(score: dict[str, Any] | None, digits: int = 3) -> str:
    """Returns "value ± standard error", or a dash."""
    return "-" if score is None else f"{score['value']:.{digits}f} ± {score['se']:.{digits}f}"


def summary(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns the page's headline: (model, figure, error) for teacher and students at 4 and 1 steps."""
    any_score = next(iter(next(iter(results.values()))["scores"]["teacher"].values()))
    name = "overall" if "overall" in any_score else "clip_score"
    lines = [("teacher", any_score[name])]
    for size, result in results.items():
        lines += [(f"{size}, {k} step" + "s" * (k != "1"), result["scores"]["student"][k][name]) for k in ("4", "1")]
    digits = 2 if name == "overall" else 1
    return [(title, f"{s['value']:.{digits}f}", f"± {s['se']:.{digits}f} {SCORE_NAMES[name]}") for title, s in lines]


def score_table(size: str, result: dict[str, Any]) -> dict[str, Any]:
    """Returns a table of all scores: a row per model and step count."""
    first = result["scores"]["student"]["1"]
    names = [name for name in SCORE_NAMES if name in first]
    rows = [
        [model, steps, *(with_error(score.get(name), 2 if name == "clip_score" else 3) for name in names)]
        for model, by_steps in result["scores"].items()
        for steps, score in by_steps.items()
    ]
    rows = in_order(rows)
    return {"size": size, "head": ["model", "steps", *(SCORE_NAMES[name] for name in names)], "rows": rows}


def task_table(size: str, result: dict[str, Any]) -> dict[str, Any]:
    """Returns a table of the tasks: a row per task, a column per model that people compare."""
    compared = plots.columns(result["scores"])
    tasks = compared[0][1].get("tasks", {})
    rows = [
        [name.replace("_", " "), part["n"], *(with_error(score["tasks"][name], 2) for _, score in compared)]
        for name, part in ((name, tasks[name]) for name in plots.in_order(tasks))
    ]
    return {"size": size, "head": ["task", "pictures", *(title for title, _ in compared)], "rows": rows}


def matched(size: str, content: dict[str, Any]) -> dict[str, Any]:
    """Returns seen against held-out combinations on the same tasks, those that have held-out prompts: a fair
    comparison, since tasks differ in difficulty.
    """
    prompts = content["prompts"]
    tasks = sorted({p["task"] for p in prompts if p["group"] == "heldout"})
    rows = []
    for model, by_steps in content["verdicts"].items():
        for steps, verdicts in by_steps.items():
            row = [model, steps]
            for group in ("seen", "heldout"):
                right = [
                    v["right"]
                    for p, v in zip(prompts, verdicts, strict=False)
                    if (p["group"], p["task"] in tasks) == (group, True)
                ]
                row.append(with_error(metrics.proportion(sum(right), len(right))._asdict()) if right else "-")
            rows.append(row)
    rows = in_order(rows) if tasks else []
    return {
        "size": size,
        "tasks": [t.replace("_", " ") for t in tasks],
        "head": ["model", "steps", "seen", "held out"],
        "rows": rows,
    }


def in_order(rows: list[list[str]]) -> list[list[str]]:
    """Returns rows of network and steps, the teacher first, and the names that people read."""
    names = {"teacher": "teacher", "teacher_fewer": "teacher", "student": "student", "undistilled": "undistilled"}
    order = list(dict.fromkeys(names.values()))
    return sorted(
        ([names[network], *rest] for network, *rest in rows), key=lambda row: (order.index(row[0]), -int(row[1]))
    )


def latency_rows(results: dict[str, Any]) -> list[list[str]]:
    """Returns the rows of the latency table."""
    rows = []
    for size, result in results.items():
        for model, by_steps in result["latency"].items():
            for steps, t in sorted(by_steps.items(), key=lambda item: -int(item[0])):
                name = f"teacher (beside {size})" if model.startswith("teacher") else size
                parts = ("p50", "p95", "text_encoder", "transformer", "decoder")
                times = [f"{1000 * t[f'{part}_s']:.1f}" for part in parts]
                rates = [f"{value:.1f}" for key, value in t.items() if key.startswith("images_per_s_at_")]
                energy = f"{t['energy_j']:.2f}" if "energy_j" in t else "-"
                rows.append([name, steps, *times, " / ".join(rates), f"{t['peak_memory_mb']:.0f}", energy])
    return rows


def batches(results: dict[str, Any]) -> str:
    """Returns the batches at which pictures a second were measured."""
    timed = next(iter(next(iter(results.values()))["latency"]["student"].values()))
    return " / ".join(key.rpartition("_")[2] for key in timed if key.startswith("images_per_s_at_"))


def stage_metrics(folder: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """Returns the numbers that each stage recorded, as text."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content = storage.read_json(path)
        pairs = [(k, f"{v:.6g}" if isinstance(v, float) else str(v)) for k, v in flat(content).items()]
        found.append((path.stem, pairs))
    return found


def flat(content: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Returns nested JSON as one level of dotted names; lists are left out."""
    pairs: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            pairs |= flat(value, f"{before}{key}.")
        elif not isinstance(value, list):
            pairs[f"{before}{key}"] = value
    return pairs


def protocol_facts(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the protocol as pairs of text; the prompts as their count."""
    facts = [(f"digest, {size}", result["protocol_digest"]) for size, result in results.items()]
    protocol = next(iter(results.values()))["protocol"]
    facts.append(("prompts", str(len(protocol["prompts"]))))
    rest = {key: value for key, value in protocol.items() if key not in ("prompts", "student")}
    facts += [(key.replace("_", " "), str(value)) for key, value in flat(rest).items()]
    facts += [
        (f"times, {size}, {steps} step" + "s" * (steps != "1"), ", ".join(f"{t:g}" for t in times))
        for size, result in results.items()
        for steps, times in result["times"].items()
    ]
    return [*facts, *((f"student {key}", str(protocol["student"][key])) for key in ("guidance", "sigma_d"))]


def lineage(data: Path) -> list[tuple[str, str]]:
    """Returns where the models come from: the git commit and the digests of data and weights' folders'
    metadata.
    """
    pairs = [("git commit", git("rev-parse", "HEAD") or "not a git repository")]
    if git("status", "--porcelain", "--untracked-files=no"):
        pairs.append(("working tree", "changed after this commit"))
    for name, path in (
        ("data manifest sha256", data / "raw/manifest.parquet"),
        ("params.yaml sha256", Path("params.yaml")),
    ):
        if path.is_file():
            pairs.append((name, storage.digest(path)))
    return pairs


def git(*words: str) -> str:
    """Returns the output of a git command, "" where there is no repository."""
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
