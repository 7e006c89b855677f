"""The report's tables: scores, tasks, seen against held out, times, stages, protocol, lineage."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sana_sprint import storage
from sana_sprint.evaluation import plots
from sana_sprint.maths import metrics

if TYPE_CHECKING:
    from collections.abc import Mapping

SCORE_NAMES = {
    "overall": "overall",
    "seen": "seen",
    "heldout": "held out",
    "fid_scene_clip": "FID (scene CLIP)",
    "fid_corpus_clip": "FID (corpus CLIP)",
    "clip_score": "CLIP score",
}
INTERVAL = 1.96  # standard errors each side: 95 per cent of a normal estimate


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


def apart(results: dict[str, Any]) -> str:
    """Returns a warning where the sizes were evaluated under several protocols, "" under one."""
    digests = {size: result["protocol_digest"] for size, result in results.items()}
    if len(set(digests.values())) == 1:
        return ""
    told = ", ".join(f"{size} {digest[:12]}" for size, digest in digests.items())
    return f"SEVERAL PROTOCOLS ({told}): differences between the sizes are not those of students alone."


def scores(size: str, result: dict[str, Any]) -> dict[str, Any]:
    """Returns a table of all scores: a row per model and step count."""
    first = result["scores"]["student"]["1"]
    names = [name for name in SCORE_NAMES if name in first]
    rows = [
        [model, steps, *(with_error(score.get(name), 2 if name == "clip_score" else 3) for name in names)]
        for model, by_steps in result["scores"].items()
        for steps, score in by_steps.items()
    ]
    rows = in_order(rows)
    head = ["model", "steps", *(SCORE_NAMES[name] for name in names)]
    return {"title": f"Scores, {size}", "size": size, "head": head, "rows": rows}


def public(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a table per public protocol under which students were scored: a row per size, step count and score."""
    rows: dict[str, list[list[str]]] = {}
    for size, result in results.items():
        for name, by_steps in result["protocols"].items():
            for steps, one in by_steps.items():
                found = {k: v for k, v in one["scores"].items() if "value" in v} | one["scores"].get("tasks", {})
                told = [[size, steps, key.replace("_", " "), with_error(value)] for key, value in found.items()]
                rows.setdefault(f"{name}, protocol {one['protocol_digest'][:12]}", []).extend(told)
    head = ["size", "steps", "score", "value"]
    return [{"title": title, "head": head, "rows": found} for title, found in rows.items()]


def tasks(size: str, result: dict[str, Any]) -> dict[str, Any]:
    """Returns a table of the tasks: a row per task, a bar per model that people compare."""
    return task_bars(f"Tasks, {size}", plots.columns(result["scores"])) | {"size": size}


def task_bars(title: str, compared: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Returns a row per task of the first of named scores, with a bar for each; no rows without tasks."""
    first = compared[0][1].get("tasks", {})
    rows = [
        {
            "task": name.replace("_", " "),
            "pictures": first[name]["n"],
            "bars": [bar(score["tasks"][name]) for _, score in compared],
        }
        for name in plots.in_order(first)
    ]
    return {"title": title, "head": ["task", "pictures", *(name for name, _ in compared)], "rows": rows}


def bar(share: dict[str, float]) -> dict[str, Any]:
    """Returns a share as text and as a bar with its 95 % confidence interval, in per cent."""
    reach = INTERVAL * share["se"]
    ends = {"value": share["value"], "low": max(share["value"] - reach, 0), "high": min(share["value"] + reach, 1)}
    return {name: round(100 * value, 1) for name, value in ends.items()} | {"text": with_error(share, 2)}


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
        "title": f"Seen and held out, {size}",
        "size": size,
        "tasks": [t.replace("_", " ") for t in tasks],
        "head": ["model", "steps", "seen", "held out"],
        "rows": rows,
    }


def ablation(path: Path) -> dict[str, Any] | None:
    """Returns the table that `make ablation` wrote, None where it has not run."""
    if not path.is_file():
        return None
    rows = storage.read_json(path)
    counted = [str(k) for k in rows[0]["scores"]]
    head = ["variant", "seeds", "ill", *(f"{k} step" + "s" * (k != "1") for k in counted)]
    told = [
        [row["variant"], row["seeds"], row["ill"]]
        + [with_error(row["scores"][k]) for k in counted]
        + [gain(row["gains"][k]) for k in counted]
        for row in rows
    ]
    head += [f"gain at {k}" for k in counted]
    return {"title": "Ablation", "words": ablation_protocols(rows), "head": head, "rows": told}


def ablation_protocols(rows: list[dict[str, Any]]) -> str:
    """Returns the line that tells the protocol of an ablation's rows, or which of them do not tell theirs."""
    scored = [row for row in rows if row["seeds"] > row["ill"]]
    silent = [row["variant"] for row in scored if row.get("protocol_digest") is None]
    if silent:
        return (
            f"Scored before protocol digests were kept, so that they may not compare: {', '.join(silent)}; run "
            "`dvc repro -f -s pipelines/ablation/dvc.yaml:variant@NAME` for each."
        )
    return f"Protocol {scored[0]['protocol_digest']:.12}." if scored else "No row has a score."


def gain(difference: dict[str, float | None] | None) -> str:
    """Returns a gain as text, without an error where one seed alone stands behind it."""
    if difference is None:
        return "-"
    return f"{difference['value']:+.3f}" + ("" if difference["se"] is None else f" ± {difference['se']:.3f}")


def in_order(rows: list[list[str]]) -> list[list[str]]:
    """Returns rows of network and steps, the teacher first, and the names that people read."""
    names = {"teacher": "teacher", "teacher_fewer": "teacher", "student": "student", "undistilled": "undistilled"}
    order = list(dict.fromkeys(names.values()))
    return sorted(
        ([names[network], *rest] for network, *rest in rows), key=lambda row: (order.index(row[0]), -int(row[1]))
    )


def latency(results: dict[str, Any]) -> list[list[str]]:
    """Returns the rows of the latency table."""
    rows = []
    for size, result in results.items():
        for model, by_steps in result["latency"].items():
            for steps, t in sorted(by_steps.items(), key=lambda item: -int(item[0])):
                name = f"teacher (beside {size})" if model.startswith("teacher") else size
                times = [f"{1000 * t[f'{quantile}_s']:.1f}" for quantile in ("p50", "p95")]
                times += [component(t, part) for part in ("text_encoder", "transformer", "decoder")]
                rates = [f"{value:.1f}" for key, value in t.items() if key.startswith("images_per_s_at_")]
                energy = f"{t['energy_j']:.2f}" if "energy_j" in t else "-"
                rows.append([name, steps, *times, " / ".join(rates), f"{t['peak_memory_mb']:.0f}", energy])
    return rows


def component(timed: dict[str, float], name: str) -> str:
    """Returns the median and the 95th percentile of a component in milliseconds, and where it is known the most memory
    in MB that it had."""
    told = f"{1000 * timed[f'{name}_s']:.1f} / {1000 * timed[f'{name}_p95_s']:.1f}"
    return told + (f", {timed[f'{name}_peak_mb']:.0f} MB" if f"{name}_peak_mb" in timed else "")


def batches(results: dict[str, Any]) -> str:
    """Returns the batches at which pictures a second were measured."""
    timed = next(iter(next(iter(results.values()))["latency"]["student"].values()))
    return " / ".join(key.rpartition("_")[2] for key in timed if key.startswith("images_per_s_at_"))


def stages(folder: Path) -> list[tuple[str, list[tuple[str, str]]]]:
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


def protocol(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the protocol as pairs of text; the prompts as their count."""
    facts = [(f"digest, {size}", result["protocol_digest"]) for size, result in results.items()]
    described = next(iter(results.values()))["protocol"]
    facts.append(("prompts", str(len(described["prompts"]))))
    rest = {key: value for key, value in described.items() if key not in ("prompts", "student")}
    facts += [(key.replace("_", " "), str(value)) for key, value in flat(rest).items()]
    facts += [
        (f"times, {size}, {steps} step" + "s" * (steps != "1"), ", ".join(f"{t:g}" for t in times))
        for size, result in results.items()
        for steps, times in result["times"].items()
    ]
    return [*facts, *((f"student {key}", str(described["student"][key])) for key in ("guidance", "sigma_d"))]


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


def digests(results: dict[str, Any], made: Mapping[str, str]) -> list[tuple[str, str]]:
    """Returns the protocol's digest of each size, and by dvc.lock those of the data and of the weights that were
    measured: students, their times, teacher and judges."""
    pairs = [(f"protocol sha256, {size}", result["protocol_digest"]) for size, result in results.items()]
    own = [f"data/models/{kind}" for size in results for kind in (f"student/{size}", f"schedule/{size}.json")]
    paths = ["data/raw", "data/latents", "data/models/teacher", "data/models/judge", *own]
    return pairs + [(f"{path}, md5", made[path]) for path in paths if path in made]


def git(*words: str) -> str:
    """Returns the output of a git command, "" where there is no repository."""
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
