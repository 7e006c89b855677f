"""What one sees in `mlflow ui`: names that sort, metrics under prefixes, data with digests, descriptions with links.

MLflow's page makes a section of charts of every prefix before the last "/", a picture with a slider of every series of
them, and Markdown of the tag `mlflow.note.content`. Addresses in it begin with "#/", so that they hold on any
server.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sana_sprint import storage
from sana_sprint.registry import origin

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from mlflow.entities import DatasetInput, Run
    from mlflow.tracking import MlflowClient

NOTE, PARENT, REGISTERED = "mlflow.note.content", "mlflow.parentRunId", "registered"
REGISTERED_BY = "[registered by]("  # stands in a version's description that is ours
FLAT = {"orderByKey": "attributes.run_name", "orderByAsc": "true"}  # sorted by time, stages hide below their command
KIND = {"mlflow.experimentKind": "custom_model_development"}  # else the page opens on traces of agents, empty here
VIEW = "workflowType=machine_learning"  # and so does the menu beside it
RUNS_MAX = 200  # of one `dvc repro`
STAGES = {  # in the order of the road: what a stage does, and what to look at in its run
    "prepare": "Writes pictures and captions into shards, with a manifest.",
    "validate": "Checks every row; its table is in data/reports/validation.",
    "foundation": "Trains the small foundation on the corpus, or takes a ready-made one. Curves: Model metrics.",
    "encode": "Turns pictures into latents and captions into embeddings.",
    "judge": "Trains the corpus CLIP that measures distance and agreement with the caption.",
    "teacher": "Fine-tunes the foundation into the teacher. Curves: Model metrics.",
    "prune": "Cuts the teacher to a size and heals it: before/, cut/ and healed/ are its scores on the way.",
    "convert": "Proves flow -> TrigFlow lossless on this network and writes it as a pipeline.",
    "distill": "Distils the student. Model metrics: the quick score (score/), student/, heads/. The pictures of the "
    "same captions in 1, 2 and 4 steps are among the artifacts, and with a slider in the parent run's Model metrics.",
    "schedule": "Searches the times of 1 to 4 steps; its plot is among the artifacts.",
    "evaluate": "Scores and times the student. by_steps/ is drawn over the number of steps; the other sections hold "
    "one chart per step count, comparable between runs. Pictures and evaluate's JSON: Artifacts.",
    "report": "The page of it all: Artifacts, index.html.",
    "register": "The student as a version of a registered model, alias challenger.",
}
DATA = {
    "data/raw": "data/metrics/prepare.json",
    "data/latents": "data/metrics/encode.json",
}  # and what tells their size


def run_name(stage: str, size: str | None) -> str:
    """Returns the name of a stage's run, which sorts in the order of the road: `09 distill base`."""
    number = f"{list(STAGES).index(stage) + 1:02d} " if stage in STAGES else ""
    return f"{number}{stage} {size or ''}".rstrip()


def parent_name(command: str) -> str:
    """Returns the name of the run of a command, which sorts by time: `2026-11-26 22:46:05 dvc repro`."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {command}"


def runs_page(experiment_id: str, query: str = "", **state: str) -> str:
    """Returns the address, from "#/" on, of an experiment's runs that fit a search, with more of the page's state."""
    told = ({"searchFilter": query} if query else {}) | state
    return f"#/experiments/{experiment_id}/runs?{VIEW}" + "".join(f"&{k}={quote(v)}" for k, v in told.items())


def run_page(run: Run, tab: str = "") -> str:
    """Returns the address of a run, or of one tab of it."""
    return f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}{tab and '/' + tab}?{VIEW}"


def experiment_tags(experiment_id: str, profile: str) -> dict[str, str]:
    """Returns the tags of a profile's experiment: its kind and its description."""
    evaluated = runs_page(experiment_id, "tags.stage = 'evaluate'", compareRunsMode="CHART", **FLAT)
    distilled = runs_page(experiment_id, "tags.stage = 'distill'", compareRunsMode="CHART", **FLAT)
    commands = runs_page(experiment_id, "tags.kind = 'parent'", compareRunsMode="CHART")
    text = (
        f"Profile `{profile}`: one run per command (`make demo`, `dvc repro`), below it one per stage and size.\n\n"
        f"- [students compared]({evaluated}): scores and times by the number of steps\n"
        f"- [distillations compared]({distilled}): losses, quick scores, health\n"
        f"- [commands compared]({commands}): the scores that each led to, and its pictures over the iterations\n"
    )
    return KIND | {NOTE: text}


def data_inputs(root: Path, stage: str, size: str | None) -> list[DatasetInput]:
    """Returns the data that a stage is made from, each with the digest by which dvc.lock knows it, as MLflow's inputs:
    `read` directly, or `upstream` of the models it reads.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    direct = origin.reads(root, stage, size) if (root / "dvc.yaml").is_file() else []
    found = []
    for path, digest in origin.made_from(root, stage, size).items():
        if path in DATA:
            known = root / DATA[path]
            profile = json.dumps(storage.read_json(known)) if known.is_file() else None
            data = Dataset(path, digest, "local", json.dumps({"uri": path}), profile=profile)
            context = "read" if any(origin.overlaps(path, one) for one in direct) else "upstream"
            found.append(DatasetInput(data, [InputTag("mlflow.data.context", context)]))
    return found


def _networks(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    for network, by_steps in evaluation["scores"].items():
        for steps, scores in by_steps.items():
            yield network, int(steps), scores


def _pairs(scores: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Returns {name: (value, standard error)} of the scores of one network, tasks as `task_<name>`."""
    named = {k: v for k, v in scores.items() if k != "tasks"}
    named |= {f"task_{task}": v for task, v in scores.get("tasks", {}).items()}
    return {name: (v["value"], v["se"]) for name, v in named.items()}


def scores(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Returns evaluate's figures as metrics of which each score is a section: `overall/student_1_step`, with errors
    under `standard_error/` and times under `latency_<figure>/`.
    """
    found: dict[str, float] = {}
    for network, steps, one in _networks(evaluation):
        for name, (value, error) in _pairs(one).items():
            found[f"{name}/{network}_{steps}_step"] = value
            found[f"standard_error/{name}_{network}_{steps}_step"] = error
    for network, by_steps in evaluation.get("latency", {}).items():
        for steps, timed in by_steps.items():
            found |= {f"latency_{name}/{network}_{steps}_step": value for name, value in timed.items()}
    return found


def curves(evaluation: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Returns {number of steps: metrics} of evaluate's figures, so that MLflow draws each over the steps:
    `by_steps/student_overall`.
    """
    found: dict[int, dict[str, float]] = {}
    for network, steps, one in _networks(evaluation):
        named = {f"by_steps/{network}_{name}": value for name, (value, _) in _pairs(one).items()}
        timed = evaluation.get("latency", {}).get(network, {}).get(str(steps), {})
        named |= {f"by_steps/{network}_latency_p50_s": timed["p50_s"]} if "p50_s" in timed else {}
        found.setdefault(steps, {}).update(named)
    return dict(sorted(found.items()))


def summary(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Returns the figures by which one command's run is told from another's: `overall/base_1_step`, of the students by
    size, and of the teacher.
    """
    size, found = evaluation["size"], dict[str, float]()
    for network, steps, one in _networks(evaluation):
        if network in ("student", "teacher"):
            who = size if network == "student" else network
            plain = {k: v for k, v in _pairs(one).items() if not k.startswith("task_")}
            found |= {f"{name}/{who}_{steps}_step": value for name, (value, _) in plain.items()}
    return found


def describe(server: MlflowClient, parent_id: str) -> str:
    """Returns the description of a command's run, written to it: its stages with their times, linked, and links to the
    report and to what it registered.
    """
    experiment_id = server.get_run(parent_id).info.experiment_id
    query = f"tags.{PARENT} = '{parent_id}'"
    found = server.search_runs([experiment_id], query, max_results=RUNS_MAX, order_by=["attributes.start_time ASC"])
    rows = [_row(run) for run in found]
    head = ["Scores, and pictures with a slider: Model metrics.", "", "| stage | status | seconds |", "|---|---|---:|"]
    text = "\n".join([" · ".join(_links(found)), "", *head, *rows])  # the page shows its first lines at once
    server.set_tag(parent_id, NOTE, text)
    return text


def _row(run: Run) -> str:
    took = f"{(run.info.end_time - run.info.start_time) / 1000:.0f}" if run.info.end_time else ""
    return f"| [{run.info.run_name}]({run_page(run)}) | {run.info.status} | {took} |"


def _links(runs: list[Run]) -> Iterator[str]:
    for run in runs:
        stage, made = run.data.tags.get("stage"), run.data.tags.get(REGISTERED)
        if stage == "report" and run.info.status == "FINISHED":
            yield f"[report]({run_page(run, 'artifacts/index.html')})"
        if made:
            yield f"[{made}](#/models/{quote(made.rpartition('/')[0])}/versions/{made.rpartition('/')[2]}?{VIEW})"
    if evaluated := [run for run in runs if run.data.tags.get("stage") == "evaluate"]:
        ids = quote(json.dumps([run.info.run_id for run in evaluated], separators=(",", ":")))
        of = quote(json.dumps([evaluated[0].info.experiment_id]))
        # The page looks for runs as the first word of the address only.
        yield f"[its students compared](#/compare-runs?runs={ids}&experiments={of}&{VIEW})"


def version_note(description: str, evaluation: Mapping[str, Any], run: Run, parent_id: str) -> str:
    """Returns the description of a version: what it is, its scores by the number of steps, links to the run that
    registered it and to the run of the command, which knows the report.
    """
    parent = f"#/experiments/{run.info.experiment_id}/runs/{parent_id}?{VIEW}"
    lines = [description, "", f"{REGISTERED_BY}{run_page(run)}), [made by]({parent})", ""]
    student = {steps: one for network, steps, one in _networks(evaluation) if network == "student"}
    if not student:
        return "\n".join([*lines, "Not scored."])
    names = [name for name in _pairs(next(iter(student.values()))) if not name.startswith("task_")]
    lines += ["| steps | " + " | ".join(names) + " |", "|---:" * (len(names) + 1) + "|"]
    for steps, one in sorted(student.items()):
        told = (f"{value:.3f} ± {error:.3f}" for value, error in _pairs(one).values())
        lines.append(f"| {steps} | " + " | ".join(list(told)[: len(names)]) + " |")
    return "\n".join([*lines, "", f"Protocol {evaluation['protocol_digest'][:16]}."])
