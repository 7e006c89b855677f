"""MLflow runs of the stages: one parent run per command (`dvc repro`, `make demo`), a child run per stage, and
one-line errors.

`stage` is what the scripts of pipelines/ open; `Recorder` is the part of it that travels to Ray workers.
MLflow is imported when a run opens. The store is MLFLOW_TRACKING_URI, else sqlite in data/mlflow of the
repository.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sana_sprint import config, process
from sana_sprint.registry import lineage, origin, store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlflow.tracking import MlflowClient
    from PIL import Image

ORPHAN_POLL_S = 0.5
PARAMS_PER_BATCH, METRICS_PER_BATCH = 100, 1000  # limits of MLflow's log-batch request
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: a limit on file size


@dataclass
class Recorder:
    """Writes metrics and pictures to the run `run_id` of the store at `uri`; can be pickled to other
    processes. Metrics that the store does not take are kept for the next call, so an outage does not end a
    training.
    """

    uri: str
    run_id: str
    pending: list[tuple[str, float, int, int]] = field(default_factory=list)

    def metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Records the numbers of a (nested) mapping at `step`, in one request."""
        now_ms = int(time.time() * 1000)
        self.pending += [(k, v, now_ms, step or 0) for k, v in lineage.numbers(values).items()]
        from mlflow.exceptions import MlflowException

        try:
            self.send()
        except (MlflowException, ValueError) as error:
            if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
                raise
            sys.stderr.write(f"warning: metrics kept for the next call: {store.one_line(error):.300}\n")

    def send(self) -> None:
        """Sends what is pending. Raises MlflowException when the store does not take it."""
        from mlflow.entities import Metric

        server = store.client(self.uri)
        while self.pending:
            batch = self.pending[:METRICS_PER_BATCH]
            server.log_batch(self.run_id, metrics=[Metric(*point) for point in batch])
            del self.pending[: len(batch)]

    def picture(self, image: Image.Image, name: str, step: int | None = None) -> None:
        """Records a picture; with a step it joins the series `name` that MLflow shows over steps."""
        if step is None:
            store.client(self.uri).log_image(self.run_id, image, artifact_file=f"{name}.png")
        else:
            store.client(self.uri).log_image(self.run_id, image, key=name, step=step)

    def file(self, path: Path) -> None:
        """Records a file as an artefact."""
        store.client(self.uri).log_artifact(self.run_id, str(path))


@dataclass
class Run(Recorder):
    """The open child run of a stage."""

    parent_id: str = ""

    def recorder(self) -> Recorder:
        """Returns the part that can be sent to other processes."""
        return Recorder(self.uri, self.run_id)


def _params(server: MlflowClient, run_id: str, sections: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    dumped = {k: v.model_dump() if hasattr(v, "model_dump") else v for k, v in sections.items()}
    rows = [Param(key, text) for key, text in lineage.texts(dumped).items()]
    for start in range(0, len(rows), PARAMS_PER_BATCH):
        server.log_batch(run_id, params=rows[start : start + PARAMS_PER_BATCH])


def _close_dead(server: MlflowClient, experiment_id: str) -> None:
    """Marks as KILLED the runs of this machine whose process is gone."""
    for run in server.search_runs([experiment_id], filter_string="attributes.status = 'RUNNING'"):
        if lineage.is_dead(run.data.tags.get("process", "")):
            server.set_terminated(run.info.run_id, "KILLED")


def _parent(server: MlflowClient, experiment_id: str, profile: str, tags: dict[str, str]) -> str:
    """Returns the parent run, RUNNING, of the command above this process (or of this process alone)."""
    owner = lineage.command_process() or lineage.process()
    found = server.search_runs(
        [experiment_id], filter_string=f"tags.process = '{owner}' and tags.kind = 'parent'", max_results=1
    )
    if found:
        server.update_run(found[0].info.run_id, status="RUNNING")
        return str(found[0].info.run_id)
    word = "by hand" if owner == lineage.process() else "dvc repro" if owner == lineage.repro_process() else "make demo"
    name = f"{word} {profile} {time.strftime('%Y-%m-%d %H:%M:%S')}"
    made = server.create_run(experiment_id, run_name=name, tags=tags | {"kind": "parent", "process": owner})
    return str(made.info.run_id)


def _open(name: str, size: str | None, sections: Mapping[str, Any]) -> Run:
    from mlflow.exceptions import MlflowException

    root = lineage.repository()
    profile, uri = config.profile(root), store.tracking_uri(root)
    server = store.client(uri)
    tags = lineage.git_tags(root) | {"profile": profile, "mlflow.source.name": Path(sys.argv[0]).name}
    try:
        experiment_id = store.experiment(server, uri, profile)
        _close_dead(server, experiment_id)
        parent_id = _parent(server, experiment_id, profile, tags)
        tags |= {"kind": "stage", "stage": name, "size": size or "", "process": lineage.process()}
        tags |= {"mlflow.parentRunId": parent_id, origin.MADE_FROM: json.dumps(origin.made_from(root, name, size))}
        label = f"{name} {size}" if size else name
        run = server.create_run(experiment_id, run_name=label, tags=tags)
        _params(server, run.info.run_id, sections)
    except MlflowException as error:
        raise store.unreachable(uri, error) from None
    return Run(uri=uri, run_id=str(run.info.run_id), parent_id=parent_id)


def _close(run: Run, status: str, trace: str = "") -> None:
    """Ends the child, and its parent if no other child runs, until the next stage opens it again; a failure stays on
    the parent.
    """
    server = store.client(run.uri)
    if trace:
        server.log_text(run.run_id, trace, "traceback.txt")
        server.set_tag(run.parent_id, "ended_by", status)
    server.set_terminated(run.run_id, status)
    parent = server.get_run(run.parent_id)
    siblings = f"tags.mlflow.parentRunId = '{run.parent_id}' and attributes.status = 'RUNNING'"
    if not server.search_runs([parent.info.experiment_id], filter_string=siblings, max_results=1):
        server.set_terminated(run.parent_id, parent.data.tags.get("ended_by", status))


def fault(error: BaseException) -> str | None:
    """Returns the one line that tells the user of a fault he can mend, or None for a fault of the code."""
    text = store.one_line(error)
    full = isinstance(error, OSError) and error.errno in FULL_DISK
    if full or "No space left on device" in text or "disk is full" in text:
        place = getattr(error, "filename", None) or text
        return f"disk full while writing ({place:.200}): free space and run `dvc repro` again"
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"{error.filename}: no such file; run `dvc repro` to make it"
    if type(error).__module__.startswith("mlflow."):
        return f"MLflow: {text:.500}"
    return text if isinstance(error, ValueError | FileNotFoundError) else None


def tell(where: str, error: BaseException) -> bool:
    """Prints `error: <where>: <line>` on stderr for a fault of the user; False if it is none, or if
    SANA_SPRINT_TRACEBACK=1 asks for the traceback.
    """
    line = fault(error)
    if line is None or os.environ.get("SANA_SPRINT_TRACEBACK") == "1":
        return False
    sys.stderr.write(f"error: {where}: {line}\n")
    sys.stderr.flush()
    return True


def _hook(kind: type[BaseException], error: BaseException, place: Any) -> None:
    script = Path(sys.argv[0])
    where = f"stage {script.stem}" if script.parent.name == "pipelines" else script.name
    if not tell(where, error):
        sys.__excepthook__(kind, error, place)


# A script loads its params section before its run opens: a fault there gets its one line too.
sys.excepthook = _hook


def _end_with(owner: str) -> None:
    """Kills this process when the `dvc` above it, named by `owner`, is gone: the next `dvc repro` must not meet
    a stage of the last one that still writes.
    """
    while not lineage.is_dead(owner):
        time.sleep(ORPHAN_POLL_S)
    sys.stderr.write("error: `dvc` is gone, so this stage ends too; run `dvc repro` again\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def stage(name: str, size: str | None = None, **sections: Any) -> Iterator[Run]:
    """Yields the MLflow run of a stage, with the params sections logged. A fault of the user (ValueError,
    missing file, full disk, unreachable store) ends the process with one line and exit code 1; the run is
    FAILED.
    """
    label = f"stage {name} {size}" if size else f"stage {name}"
    run: Run | None = None
    process.settle()
    if owner := lineage.repro_process():
        threading.Thread(target=_end_with, args=(owner,), daemon=True).start()
    try:
        run = _open(name, size, sections)
        yield run
        run.send()
        _close(run, "FINISHED")
    except BaseException as error:
        if run is not None:
            _end_badly(run, error)
        if tell(label, error):
            raise SystemExit(1) from None
        raise


def _end_badly(run: Run, error: BaseException) -> None:
    from mlflow.exceptions import MlflowException

    status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, SystemExit) and not error.code:
        status, trace = "FINISHED", ""
    try:
        _close(run, status, trace)
    except (MlflowException, ValueError, OSError) as second:
        sys.stderr.write(f"warning: the run stays open in MLflow: {store.one_line(second):.300}\n")
