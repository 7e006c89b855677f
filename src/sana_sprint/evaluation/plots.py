"""PNG plots for `dvc plots` and the report: scores against steps, tasks, training curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sana_sprint import storage
from sana_sprint.data import scenes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, RULE = "#1c1e22", "#6e727a", "#dfe1e5"
COLOURS = ("#2f5fd0", "#d9642b", "#2a8c59", "#8a4fb0", "#b8912a", "#c2375a")
STYLES = {
    "student": (COLOURS[0], "o", "-"),
    "undistilled": (COLOURS[1], "s", "--"),
    "teacher": (COLOURS[2], "", ":"),
}
TITLES = {
    "overall": "overall score",
    "fid_scene_clip": "FID on scene CLIP (lower is better)",
    "fid_corpus_clip": "FID on corpus CLIP (lower is better)",
    "clip_score": "CLIP score",
}
SMOOTHED_POINTS = 40
PANELS_A_ROW = 4
BARS = ("#2a8c59", "#1d3f91", "#4f7be0", "#a9c0f2")  # teacher, then the student at falling step counts


def figure(panels: int, width: float = 4.2, height: float = 3.1) -> tuple[Figure, list[Axes]]:
    """Returns a figure of `panels` plain axes, four to a row, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns, rows = min(panels, PANELS_A_ROW), -(-panels // PANELS_A_ROW)
    fig = Figure(figsize=(width * columns, height * rows), layout="constrained", facecolor="white")
    FigureCanvasAgg(fig)
    axes = [fig.add_subplot(rows, columns, 1 + panel) for panel in range(panels)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(RULE)
        ax.grid(color=RULE, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(colors=FAINT, labelsize=8)
    return fig, axes


def save(fig: Figure, path: Path) -> None:
    """Writes a figure as PNG without a time stamp: equal figures give equal bytes."""
    with storage.whole_file(path) as unfinished:
        fig.savefig(unfinished, format="png", dpi=110, metadata={"Software": None})


def scores(result: dict[str, Any], path: Path) -> None:
    """Writes the plot of each score against the number of steps, with standard errors; `result` is evaluate's
    JSON.
    """
    first = result["scores"]["student"]["1"]
    names = [name for name in TITLES if name in first]
    fig, axes = figure(len(names))
    for ax, name in zip(axes, names, strict=True):
        for model, (colour, marker, line) in STYLES.items():
            draw_model(ax, result["scores"][model], name, model, (colour, marker, line))
        ax.set_title(TITLES[name], fontsize=9, color=INK, loc="left")
        ax.set_xticks([int(k) for k in result["scores"]["student"]])
        ax.set_xlabel("steps", fontsize=8, color=FAINT)
    axes[0].legend(frameon=False, fontsize=8)
    save(fig, path)


def draw_model(ax: Axes, by_steps: dict[str, Any], name: str, model: str, style: tuple[str, str, str]) -> None:
    """Draws one model's score: points with error bars, the teacher as a level with its band."""
    colour, marker, line = style
    values = [by_steps[steps][name] for steps in by_steps]
    if model == "teacher":
        value, se = values[0]["value"], values[0]["se"]
        ax.axhline(value, color=colour, linestyle=line, label=f"teacher, {next(iter(by_steps))} steps")
        ax.axhspan(value - se, value + se, color=colour, alpha=0.12, linewidth=0)
        return
    points = ([int(k) for k in by_steps], [v["value"] for v in values])
    errors = [v["se"] for v in values]
    ax.errorbar(
        *points,
        yerr=errors,
        color=colour,
        marker=marker,
        linestyle=line,
        markersize=4,
        capsize=3,
        label=model,
    )


def pareto(result: dict[str, Any], path: Path) -> None:
    """Writes quality against the time of one picture: teacher and student at all their step counts, with standard
    errors."""
    first = result["scores"]["student"]["1"]
    name = "overall" if "overall" in first else "clip_score"
    lines = {"teacher": ("teacher", "teacher_fewer"), "student": ("student",)}
    fig, (ax,) = figure(1, width=6.4, height=3.8)
    for title, networks in lines.items():
        colour, marker, _ = STYLES[title]
        scores, times = (
            {k: v for n in networks for k, v in result[part].get(n, {}).items()} for part in ("scores", "latency")
        )
        steps = sorted((k for k in scores if k in times), key=int)
        x, y = [1000 * times[k]["p50_s"] for k in steps], [scores[k][name]["value"] for k in steps]
        errors = [scores[k][name]["se"] for k in steps]
        ax.errorbar(x, y, yerr=errors, color=colour, marker=marker or "^", markersize=5, capsize=3, label=title)
        for k, place in zip(steps, zip(x, y, strict=True), strict=True):
            ax.annotate(k, place, textcoords="offset points", xytext=(6, -11), fontsize=8, color=FAINT)
    ax.set_xscale("log")
    for axis_format in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
        axis_format(lambda ms, _: f"{ms:g}")
    ax.tick_params(which="both", colors=FAINT, labelsize=8)
    ax.set_xlabel("one picture, milliseconds (figures at the points: steps)", fontsize=8, color=FAINT)
    ax.set_ylabel(TITLES[name], fontsize=8, color=FAINT)
    ax.legend(frameon=False, fontsize=8)
    save(fig, path)


def tasks(result: dict[str, Any], path: Path) -> None:
    """Writes a group of bars per task: the teacher and the student at 4, 2 and 1 steps, with standard
    errors.
    """
    rows = columns(result["scores"])
    names = in_order(rows[0][1].get("tasks", {}))
    fig, (ax,) = figure(1, width=max(5.0, 1.3 * len(names)), height=3.3)
    if not names:
        ax.text(0.5, 0.5, "this profile has no judge of tasks", ha="center", transform=ax.transAxes, color=FAINT)
    for number, (title, score) in enumerate(rows):
        places = [i + (number - (len(rows) - 1) / 2) * 0.2 for i in range(len(names))]
        values = [score["tasks"][name] for name in names]
        heights, errors = [v["value"] for v in values], [v["se"] for v in values]
        error_style = {"elinewidth": 0.8, "ecolor": INK}
        ax.bar(places, heights, 0.18, yerr=errors, color=BARS[number], label=title, error_kw=error_style)
    ax.set_xticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=8, rotation=0)
    if len(names) > 8:
        ax.tick_params(axis="x", rotation=30)
    ax.set_ylim(0, 1.05)
    if names:
        ax.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.13))
    save(fig, path)


def schedule(found: dict[str, Any], path: Path) -> None:
    """Writes one panel per step count of a schedule's search: score against the new time, with standard errors, its
    smoothed curve, and the time that was found; the times it joined are dotted."""
    fig, axes = figure(len(found["trials"]))
    for ax, (steps, trials) in zip(axes, found["trials"].items(), strict=True):
        new, values = [t["new"] for t in trials], [t["score"]["value"] for t in trials]
        errors = [t["score"]["se"] for t in trials]
        ax.errorbar(new, values, yerr=errors, color=COLOURS[0], marker="o", markersize=3, linestyle="", alpha=0.5)
        ax.plot(new, [t["smoothed"] for t in trials], color=COLOURS[0], linewidth=1.4)
        for time in found["found"][steps][:-1]:
            taken = time == max(trials, key=lambda t: (t["smoothed"], t["new"]))["new"]
            ax.axvline(time, color=COLOURS[1] if taken else FAINT, linestyle="-" if taken else ":", linewidth=1)
        kept = "" if found["times"][steps] == found["found"][steps] else ": no gain, the profile's stays"
        ax.set_title(f"{steps} step" + "s" * (steps != "1") + kept, fontsize=9, color=INK, loc="left")
        ax.set_xlabel("the new time, radians", fontsize=8, color=FAINT)
    axes[0].set_ylabel(found["measure"].replace("_", " "), fontsize=8, color=FAINT)
    save(fig, path)


def in_order(tasks: Iterable[str]) -> list[str]:
    """Returns task names as people expect them: GenEval's in GenEval's order, then all others by name."""
    known = {name: place for place, name in enumerate(scenes.TASKS)}
    return sorted(tasks, key=lambda name: (known.get(name, len(known)), name))


def columns(by_model: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Returns the columns that people compare, with their titles: teacher, then student at 4, 2 and 1
    steps.
    """
    steps, teacher = next(iter(by_model["teacher"].items()))
    chosen = [(f"{k} step" + "s" * (k > 1), by_model["student"][str(k)]) for k in (4, 2, 1)]
    return [(f"teacher, {steps} steps", teacher), *chosen]


def curves(series: dict[str, list[list[float]]], path: Path) -> None:
    """Writes one panel per metric of a training: points as they were logged and their moving average."""
    import numpy as np

    names = sorted(name for name, points in series.items() if points)
    fig, axes = figure(max(len(names), 1), width=3.2, height=2.4)
    for number, name in enumerate(names):
        steps, values = np.array(series[name], dtype=float).T
        width = max(len(values) // SMOOTHED_POINTS, 1)
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        axes[number].plot(steps, values, color=COLOURS[0], alpha=0.3 if width > 1 else 1, linewidth=0.8)
        if width > 1:
            axes[number].plot(steps[width - 1 :], smooth, color=COLOURS[0], linewidth=1.4)
        axes[number].set_title(name, fontsize=9, color=INK, loc="left")
    save(fig, path)


def compared(
    runs: dict[str, dict[str, list[list[float]]]], names: Iterable[str], path: Path, scale: str = "linear"
) -> None:
    """Writes one panel per metric with a line per run, for the metrics that some run has. `scale` is the values' axis,
    linear or log."""
    shown = [name for name in names if any(name in series for series in runs.values())]
    fig, axes = figure(max(len(shown), 1))
    for ax, name in zip(axes, shown, strict=False):
        for number, (run, series) in enumerate(runs.items()):
            if points := series.get(name):
                style = "-" if number < len(COLOURS) else "--"
                ax.plot(*zip(*points, strict=True), style, color=COLOURS[number % len(COLOURS)], linewidth=1, label=run)
        ax.set_yscale(scale)
        ax.set_title(name, fontsize=9, color=INK, loc="left")
        ax.set_xlabel("step", fontsize=8, color=FAINT)
    axes[0].legend(frameon=False, fontsize=6)
    save(fig, path)
