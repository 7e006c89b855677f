"""Where a run comes from: the repository, its git commit, the `dvc repro` that started it, digests of its
inputs.
"""

from __future__ import annotations

import functools
import json
import os
import re
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from sana_sprint import storage
from sana_sprint.registry import origin, packed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow.tracking import MlflowClient

RUN_TAG = "run_"  # prefix of a version's tags that name the runs of its stages
RUNS = "transferred.runs"  # the tag of a version from another registry: its runs as they were told there
GONE = "gone"  # the status of a run that the server does not have
DATA_DIGEST = "data_digest"  # the tag of versions: sha256 of the data manifest
UPSTREAM = ("prepare", "foundation", "encode", "teacher", "prune", "convert", "distill", "schedule", "evaluate")


PARAM_LENGTH_MAX, METRIC_LENGTH_MAX = 6000, 250  # of MLflow: a param's value, a metric's name


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a nested mapping as one level with dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def numbers(content: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a nested mapping under names that MLflow takes for metrics: other characters, as
    in a caption, become underscores.
    """
    leaves = flat(content)
    return {
        re.sub(r"[^/\w.\- :]", "_", key)[:METRIC_LENGTH_MAX]: float(value)
        for key, value in leaves.items()
        if isinstance(value, int | float)
    }


def texts(sections: Mapping[str, Any]) -> dict[str, str]:
    """Returns params sections as MLflow logs them: dotted keys, JSON values."""
    leaves = flat(sections)
    return {k: (v if isinstance(v, str) else json.dumps(v))[:PARAM_LENGTH_MAX] for k, v in leaves.items()}


def repository(start: Path | None = None) -> Path:
    """Returns the folder with params.yaml: the current one or the nearest above it. Raises ValueError if none
    is.
    """
    if found := repository_or_none(start):
        return found
    raise ValueError(f"{start or Path.cwd()}: no params.yaml here or above: run this inside the repository")


def repository_or_none(start: Path | None = None) -> Path | None:
    """Returns what `repository` does, None where that raises."""
    here = (start or Path.cwd()).resolve()
    return next((folder for folder in (here, *here.parents) if (folder / "params.yaml").is_file()), None)


def _git(root: Path, *words: str) -> str | None:
    try:
        answer = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def git_tags(root: Path) -> dict[str, str]:
    """Returns the tags of the git commit and of uncommitted changes; `none` outside a git repository."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return {"git_commit": "none", "git_dirty": "unknown"}
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    dirty = "unknown" if changes is None else str(bool(changes)).lower()
    return {"mlflow.source.git.commit": commit, "git_commit": commit, "git_dirty": dirty}


def _mark(one: psutil.Process) -> str:
    return f"{socket.gethostname()}:{one.pid}:{one.create_time():.2f}"


def process() -> str:
    """Returns the identity of this process: host:pid:start time."""
    return _mark(psutil.Process())


def _is_dvc(one: psutil.Process) -> bool:
    try:
        return any(Path(word).name in ("dvc", "dvc.exe") for word in one.cmdline()[:3])
    except psutil.Error:
        return False


@functools.cache
def repro_process() -> str | None:
    """Returns the identity of the nearest `dvc` above this process, or None when a stage is run by hand."""
    return next((_mark(one) for one in psutil.Process().parents() if _is_dvc(one)), None)


@functools.cache
def command_process() -> str | None:
    """Returns the identity of the command whose stages share a parent run: the process above this one that
    SANA_SPRINT_OWNER names, as `make demo` does for its several `dvc repro`, else the nearest `dvc`.
    """
    chosen = os.environ.get("SANA_SPRINT_OWNER", "")
    named = (_mark(one) for one in psutil.Process().parents() if str(one.pid) == chosen)
    return next(named, None) or repro_process()


def is_dead(mark: str) -> bool:
    """Tells whether a process of this machine, named by `process`, has ended. Other machines' are never
    dead.
    """
    host, _, rest = mark.rpartition(":")[0].rpartition(":")
    started = mark.rpartition(":")[2]
    if host != socket.gethostname() or not rest.isdigit():
        return False
    try:
        one = psutil.Process(int(rest))
        return f"{one.create_time():.2f}" != started or one.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def digests(root: Path) -> dict[str, str]:
    """Returns the sha256 of the data manifest; `none` where there is none."""
    path = root / "data/raw/manifest.parquet"
    return {DATA_DIGEST: storage.digest(path) if path.is_file() else "none"}


def read(tags: Mapping[str, str], key: str) -> dict[str, Any]:
    """Returns the JSON of a tag, {} where it is not there or none."""
    try:
        found = json.loads(tags.get(key, "{}"))
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def of_run(server: MlflowClient, run_id: str) -> dict[str, Any]:
    """Returns a run's name, status, seconds, parent, parameters by name, and machine; only its id where the server has
    it no more."""
    from mlflow.exceptions import MlflowException

    try:
        run = server.get_run(run_id)
    except MlflowException:
        return {"run": run_id, "status": GONE}
    took_s = (run.info.end_time - run.info.start_time) / 1000 if run.info.end_time else None
    told = {"run": run_id, "name": run.info.run_name, "status": run.info.status, "took_s": took_s}
    parent = run.data.tags.get("mlflow.parentRunId")
    told |= {"parent": parent} if parent else {}  # the run of a command has none
    params = {key: parsed(text) for key, text in sorted(run.data.params.items())}
    return told | {"params": params, "made_on": read(run.data.tags, origin.MADE_ON)}


def runs_behind(server: MlflowClient, tags: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Returns by stage what `of_run` tells of the runs that a version's tags name; of runs that the server does not
    have, what the registry told that the version came from."""
    carried = packed.unpack(tags, RUNS) or {}
    named = {key.removeprefix(RUN_TAG): run_id for key, run_id in sorted(tags.items()) if key.startswith(RUN_TAG)}
    told = {stage: of_run(server, run_id) for stage, run_id in named.items()}
    return {stage: carried.get(stage, one) if one["status"] == GONE else one for stage, one in told.items()}


def run_ids(server: MlflowClient, run_id: str, size: str, sections: Mapping[str, Any], root: Path) -> dict[str, str]:
    """Returns `run_<stage>`: the finished run of each stage that a model of this size came through, in the experiment
    of run `run_id`; of several the newest of the same command, else the newest. Stages that DVC took from its cache ran
    under another parent, perhaps before other params or data were tried, and in a team others run them too: a run
    counts only if its logged params are those of `sections`, the profile in use, and if it read what dvc.lock says that
    the stage read.
    """
    mine = server.get_run(run_id)
    rows = server.search_runs(
        [mine.info.experiment_id],
        filter_string="tags.kind = 'stage' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=1000,
    )
    command, stages = mine.data.tags.get("mlflow.parentRunId"), origin.locked(root)
    found: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row.data.tags.get("mlflow.parentRunId") != command):
        stage, fits = row.data.tags["stage"], row.data.tags.get("size") in ("", None, size)
        if stage in UPSTREAM and fits and _same(row.data.params, stage, sections):
            made = json.loads(row.data.tags.get(origin.MADE_FROM, "{}"))
            if origin.read_alike(stages, stage, size, made):
                found.setdefault(f"run_{stage}", str(row.info.run_id))
    return found


def _same(logged: Mapping[str, str], stage: str, sections: Mapping[str, Any]) -> bool:
    """Tells whether the params of section `stage` that a run logged are the present ones."""
    now = texts({stage: sections.get(stage, {})})
    return all(
        key in now and parsed(now[key]) == parsed(value)  # 1 and 1.0 are one param
        for key, value in logged.items()
        if key.startswith(f"{stage}.")
    )


def parsed(text: str) -> Any:
    """Returns the value of a param from the text that `texts` made of it."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
