"""Comparison of two evaluations of a student: of the working tree, two commits, two registered versions, or files.

Scores that were measured under different protocols are no measure of two students; they are shown, and it is said.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sana_sprint.maths import metrics
from sana_sprint.registry import store, versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORKSPACE = "workspace"
NETWORKS = ("student", "undistilled", "teacher")
SIDES = ("before", "after")


@dataclass(frozen=True)
class Evaluation:
    """Evaluate's scores by network, steps and name, their protocol's digest, and where they are known, every verdict
    with its prompt's task, and what reads a file of the pictures' folder."""

    name: str
    digest: str
    scores: dict[str, dict[str, dict[str, dict[str, float]]]]
    seen: dict[str, Any] | None
    picture: Callable[[str], bytes] | None = None

    def rights(self, network: str, steps: str) -> list[float]:
        """Returns 1 for every right picture and 0 for others, [] where no verdicts are known."""
        verdicts = self.seen["verdicts"].get(network, {}).get(steps, []) if self.seen else []
        return [float(verdict["right"]) for verdict in verdicts]


@dataclass(frozen=True)
class Row:
    """A score in both evaluations, and the difference of the second from the first."""

    network: str
    steps: str
    score: str
    before: dict[str, float]
    after: dict[str, float]
    gain: metrics.Estimate
    paired: bool


def load(word: str, size: str, root: Path) -> Evaluation:
    """Returns the evaluation of `workspace`, models:/name@alias, models:/name/version, runs:/id of MLflow, a JSON file,
    or a git revision. Raises ValueError naming what is not there."""
    if word.startswith("models:/"):
        return registered(word)
    if word.startswith("runs:/"):
        return read(word, partial(of_run, word.removeprefix("runs:/")))
    if word != WORKSPACE and Path(word).is_file():
        return read(word, Path(word).read_bytes)
    scores, grid = paths(size)
    file = partial(in_workspace, root) if word == WORKSPACE else partial(at_revision, root, word)
    return read(
        f"{word}, {size}", partial(file, scores), partial(file, grid / "verdicts.json"), partial(within, file, grid)
    )


def of_run(run_id: str) -> bytes:
    """Returns evaluate's JSON as a run of that stage recorded it. Raises OSError where the run has none."""
    from mlflow.exceptions import MlflowException

    server = store.client(store.tracking_uri())
    try:
        size = server.get_run(run_id).data.tags.get("size", "none")
        with tempfile.TemporaryDirectory() as folder:
            return Path(server.download_artifacts(run_id, f"{size}.json", folder)).read_bytes()
    except MlflowException as error:
        raise OSError(store.one_line(error)) from None


def in_workspace(root: Path, path: Path) -> bytes:
    """Returns an output of the pipeline as it lies in the working tree."""
    return (root / path).read_bytes()


def within(file: Callable[[Path], bytes], folder: Path, name: str) -> bytes:
    """Returns what `file` reads of a folder's file."""
    return file(folder / name)


def at_revision(root: Path, revision: str, path: Path) -> bytes:
    """Returns an output of the pipeline as it was at a git revision. Raises OSError where it is not to be had."""
    import dvc.api
    from dvc.exceptions import DvcException
    from scmrepo.exceptions import SCMError

    try:
        return bytes(dvc.api.read(str(path), repo=str(root), rev=revision, mode="rb"))
    except (DvcException, SCMError) as error:
        raise OSError(str(error)) from None


def paths(size: str) -> tuple[Path, Path]:
    """Returns where evaluate writes scores and pictures with their verdicts, from the repository's root."""
    return Path(f"data/metrics/evaluate/{size}.json"), Path(f"data/grids/{size}")


def read(
    name: str,
    scores: Callable[[], bytes],
    seen: Callable[[], bytes] | None = None,
    picture: Callable[[str], bytes] | None = None,
) -> Evaluation:
    """Returns an evaluation from what these functions read."""
    try:
        found = json.loads(scores())
        judged = json.loads(seen()) if seen else None
        return Evaluation(name, found["protocol_digest"], found["scores"], judged, picture)
    except (OSError, ValueError, KeyError) as error:
        words = " ".join(str(error).split())
        remedy = (
            "name workspace, a git revision with a dvc.lock, models:/name@alias, runs:/id of an evaluation, or its JSON"
        )
        raise ValueError(f"{name}: no evaluation there ({words}); {remedy}") from None


def registered(uri: str) -> Evaluation:
    """Returns the evaluation that a registered version carries."""
    version = versions.resolve(store.client(store.tracking_uri()), uri)
    for tag in ("scores", "protocol_digest"):
        if tag not in version.tags:
            raise ValueError(f"{uri}: no tag '{tag}', so nothing to compare; register it with `dvc repro register`")
    scores = {
        network: {steps: {k: {"value": v[0], "se": v[1]} for k, v in at.items()} for steps, at in per.items()}
        for network, per in json.loads(version.tags["scores"]).items()
    }
    return Evaluation(f"{version.name} version {version.version}", version.tags["protocol_digest"], scores, None)


def rows(before: Evaluation, after: Evaluation) -> Iterator[Row]:
    """Yields a row per score that both have. The difference of overall scores is paired by prompt where both protocols
    are one and verdicts are known; others have the error of independent measurements."""
    for network in NETWORKS:
        one, other = (e.scores.get(network, {}) for e in (before, after))
        for steps in (steps for steps in one if steps in other):
            for score in (k for k, v in one[steps].items() if "value" in v and k in other[steps]):
                pair = one[steps][score], other[steps][score]
                paired = paired_gain(before, after, network, steps) if score == "overall" else None
                apart = metrics.Estimate(
                    pair[1]["value"] - pair[0]["value"], (pair[0]["se"] ** 2 + pair[1]["se"] ** 2) ** 0.5
                )
                yield Row(network, steps, score, *pair, paired or apart, paired is not None)


def paired_gain(before: Evaluation, after: Evaluation, network: str, steps: str) -> metrics.Estimate | None:
    """Returns the mean over tasks of the differences prompt by prompt, None where they cannot be paired."""
    rights = [evaluation.rights(network, steps) for evaluation in (before, after)]
    if before.digest != after.digest or not all(rights) or before.seen is None:
        return None
    tasks: dict[str, list[float]] = {}
    for prompt, a, b in zip(before.seen["prompts"], *rights, strict=True):
        tasks.setdefault(prompt["task"], []).append(b - a)
    return metrics.average([metrics.mean(torch.tensor(gains, dtype=torch.float64)) for gains in tasks.values()])


def public(before: Evaluation, after: Evaluation) -> dict[str, Any]:
    """Returns the comparison as JSON types; `one_protocol` tells whether it is one of students alone."""
    found = [
        {
            "network": row.network,
            "steps": row.steps,
            "score": row.score,
            "before": row.before,
            "after": row.after,
            "difference": {"value": row.gain.value, "se": row.gain.se, "paired": row.paired},
        }
        for row in rows(before, after)
    ]
    sides = {
        key: {"name": one.name, "protocol_digest": one.digest} for key, one in zip(SIDES, (before, after), strict=True)
    }
    return sides | {"one_protocol": before.digest == after.digest, "rows": found}


def against_champions(prefix: str, root: Path) -> list[dict[str, Any]]:
    """Returns the working tree's students beside the champions of their models, `prefix`-<size>."""
    sizes = [path.stem for path in sorted((root / paths("any")[0]).parent.glob("*.json"))]
    tables = [against_champion(f"{prefix}-{size}", size, root) for size in sizes]
    return [table for table in tables if table]


def against_champion(name: str, size: str, root: Path) -> dict[str, Any] | None:
    """Returns a student beside the champion of its model as a table with title and words, None without a champion."""
    if versions.version_of(store.client(store.tracking_uri()), name, versions.CHAMPION) is None:
        return None
    champion, here = registered(f"models:/{name}@{versions.CHAMPION}"), load(WORKSPACE, size, root)
    words = "As the registry had it when this page was made. " + told(champion, here)
    head = ["steps", "score", "champion", "this student", "difference"]
    rows = [row[1:] for row in table(champion, here) if row[0] == NETWORKS[0]]
    return {"title": f"{size} against {champion.name}", "words": words, "head": head, "rows": rows}


def told(before: Evaluation, after: Evaluation) -> str:
    """Returns in words whether two evaluations were measured under one protocol."""
    if before.digest == after.digest:
        return f"One protocol, {before.digest[:12]}."
    digests = f"{before.digest[:12]} and {after.digest[:12]}"
    return f"TWO PROTOCOLS, {digests}: differences are not those of students alone."


def table(before: Evaluation, after: Evaluation) -> list[list[str]]:
    """Returns the rows as text."""
    return [
        [
            row.network,
            row.steps,
            row.score.replace("_", " "),
            *(f"{part['value']:.3f} ± {part['se']:.3f}" for part in (row.before, row.after)),
            f"{row.gain.value:+.3f} ± {row.gain.se:.3f}" + (" (paired)" if row.paired else ""),
        ]
        for row in rows(before, after)
    ]
