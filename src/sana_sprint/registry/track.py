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
import shutil
import signal
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sana_sprint import config, process
from sana_sprint.registry import dashboard, lineage, origin, outbox, store, system_metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mlflow.tracking import MlflowClient
    from PIL import Image

T = TypeVar("T")
ORPHAN_POLL_S, GRACE_S = 0.5, 60.0
PARAMS_PER_BATCH, METRICS_PER_BATCH = 100, outbox.METRICS_PER_BATCH  # limits of MLflow's log-batch request
OBJECT_STORE = "it is reached by MLFLOW_S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: a limit on file size


@dataclass
class Recorder:
    """Writes metrics and pictures of a run to its outbox in `folder`, from which the stage's process sends them; can be
    pickled to other processes. Nothing here waits for the tracking store, so that an outage does not hold a training.
    """

    folder: Path
    pending: list[dict[str, Any]] = field(default_factory=list)
    parent_id: str = ""

    def metrics(self, values: Mapping[str, Any], step: int | None = None, run_id: str = "") -> None:
        """Records the numbers of a (nested) mapping at `step`, of this run or of the one named. On a full disk they are
        kept for the next call.
        """
        now_ms = int(time.time() * 1000)
        points = [[k, v, now_ms, step or 0] for k, v in lineage.numbers(values).items()]
        of = {"run": run_id} if run_id else {}
        self.pending += [of | {"metrics": points}] if points else []
        try:
            self.write_pending()
        except OSError as error:
            sys.stderr.write(f"warning: metrics kept for the next call: {error}\n")

    def write_pending(self) -> None:
        """Writes what a full disk has held up. Raises OSError when it still does."""
        while self.pending:
            outbox.write(self.folder, self.pending[0])
            del self.pending[0]

    def picture(self, image: Image.Image, name: str, step: int | None = None) -> None:
        """Records a picture; with a step it joins the series `name` that MLflow shows over steps, with a slider that
        begins at 0. Series are of the command's run: beside a picture MLflow's page writes all params of its run, and
        those of a stage leave no room for it.
        """
        place = outbox.place_for(self.folder, "picture.png")
        image.save(place)
        told = {"picture": str(place.relative_to(self.folder)), "name": name, "step": step}
        told |= {"run": self.parent_id} if step is not None and self.parent_id else {}
        outbox.write(self.folder, told | {"at_ms": int(time.time() * 1000)})

    def text(self, content: str, name: str) -> None:
        """Records a text file of this name as an artefact."""
        place = outbox.place_for(self.folder, name)
        place.write_text(content)
        outbox.write(self.folder, {"file": str(place.relative_to(self.folder))})

    def file(self, path: Path) -> None:
        """Records a file, as it is now, as an artefact."""
        place = outbox.place_for(self.folder, path.name)
        shutil.copyfile(path, place)
        outbox.write(self.folder, {"file": str(place.relative_to(self.folder))})


@dataclass
class Run(Recorder):
    """The open child run of a stage."""

    uri: str = ""
    run_id: str = ""

    def scores(self, evaluation: Mapping[str, Any]) -> None:
        """Records evaluate's figures as dashboard.py groups them, and their summary on the run of the command."""
        self.metrics(dashboard.scores(evaluation))
        for steps, values in dashboard.curves(evaluation).items():
            self.metrics(values, steps)
        self.metrics(dashboard.summary(evaluation), run_id=self.parent_id)

    def recorder(self) -> Recorder:
        """Returns the part that can be sent to other processes."""
        return Recorder(self.folder, parent_id=self.parent_id)

    def patiently(self, action: Callable[[], T]) -> T:
        """Returns what `action` returns, which may be done again when the tracking store was away meanwhile."""
        return store.patiently(self.uri, action)


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


def _parent(server: MlflowClient, experiment_id: str, tags: dict[str, str]) -> str:
    """Returns the parent run, RUNNING, of the command above this process (or of this process alone)."""
    owner = lineage.command_process() or lineage.process()
    found = server.search_runs(
        [experiment_id], filter_string=f"tags.process = '{owner}' and tags.kind = 'parent'", max_results=1
    )
    if found:
        server.update_run(found[0].info.run_id, status="RUNNING")
        return str(found[0].info.run_id)
    word = "by hand" if owner == lineage.process() else "dvc repro" if owner == lineage.repro_process() else "make demo"
    tags = tags | {"kind": "parent", "process": owner}
    made = server.create_run(experiment_id, run_name=dashboard.parent_name(word), tags=tags)
    return str(made.info.run_id)


def _open(name: str, size: str | None, sections: Mapping[str, Any]) -> Run:
    from mlflow.exceptions import MlflowException

    root = lineage.repository()
    profile, uri = config.profile(root), store.tracking_uri(root)
    server = store.client(uri)
    tags = lineage.git_tags(root) | {"profile": profile, "mlflow.source.name": Path(sys.argv[0]).name}
    try:
        experiment_id = store.experiment(server, uri, profile)
        outbox.send_left(root, uri)
        _close_dead(server, experiment_id)
        parent_id = _parent(server, experiment_id, tags)
        tags |= {"kind": "stage", "stage": name, "size": size or "", "process": lineage.process()}
        tags |= {"mlflow.parentRunId": parent_id, origin.MADE_FROM: json.dumps(origin.made_from(root, name, size))}
        tags |= {origin.MADE_ON: json.dumps(origin.machine())}
        tags |= {dashboard.NOTE: dashboard.STAGES[name]} if name in dashboard.STAGES else {}
        run = server.create_run(experiment_id, run_name=dashboard.run_name(name, size), tags=tags)
        _params(server, run.info.run_id, sections)
        server.log_inputs(run.info.run_id, dashboard.data_inputs(root, name, size))
    except MlflowException as error:
        raise store.unreachable(uri, error) from None
    run_id = str(run.info.run_id)
    return Run(root / outbox.FOLDER / run_id, uri=uri, run_id=run_id, parent_id=parent_id)


def _close(run: Run, box: outbox.Outbox, status: str, trace: str = "") -> None:
    """Ends the run: everything it has to say is in the store, or lies in its outbox and a line says so."""
    record = {"end": status, "at_ms": int(time.time() * 1000), "parent_id": run.parent_id, "trace": trace}
    run.write_pending()
    outbox.write(run.folder, record)
    waits = status == "FINISHED" and run.uri.startswith("http")
    box.finish(store.wait_s() if waits else 0)


def fault(error: BaseException) -> str | None:
    """Returns the one line that tells the user of a fault he can mend, or None for a fault of the code."""
    text = store.one_line(error)
    full = isinstance(error, OSError) and error.errno in FULL_DISK
    if full or "No space left on device" in text or "disk is full" in text:
        place = getattr(error, "filename", None) or text
        return f"disk full while writing ({place:.200}): free space and run `dvc repro` again"
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"{error.filename}: no such file; run `dvc repro` to make it"
    if type(error).__module__.startswith(("boto3.", "botocore.")):
        return f"the artefact store cannot be used ({text:.500}): {OBJECT_STORE}"
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
    """Ends this process when the `dvc` above it, named by `owner`, is gone: the next `dvc repro` must not meet a stage
    of the last one that still writes. A training gets GRACE_S to write a checkpoint; all else ends at once.
    """
    while not lineage.is_dead(owner):
        time.sleep(ORPHAN_POLL_S)
    sys.stderr.write("error: `dvc` is gone, so this stage ends too; run `dvc repro` again\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def stage(name: str, size: str | None = None, **sections: Any) -> Iterator[Run]:
    """Yields the MLflow run of a stage, with the params sections logged. A fault of the user (ValueError,
    missing file, full disk, unreachable store) ends the process with one line and exit code 1; the run is
    FAILED. A store that is away is waited for at the beginning; at the end it is too, and then the stage, whose outputs
    are whole, ends well and leaves its records in the outbox.
    """
    label = f"stage {name} {size}" if size else f"stage {name}"
    run: Run | None = None
    box: outbox.Outbox | None = None
    process.settle()
    if owner := lineage.repro_process():
        threading.Thread(target=_end_with, args=(owner,), daemon=True).start()
    try:
        run = store.patiently(store.tracking_uri(), lambda: _open(name, size, sections))
        box = outbox.Outbox(run.uri, run.run_id, run.folder)
        box.start()
        with system_metrics.sampled(run.recorder()):
            yield run
        _close(run, box, "FINISHED")
        if box.refused:
            raise ValueError(f"MLflow refuses a record of this run: {box.refused:.300}")
    except BaseException as error:
        if run is not None and box is not None:
            _end_badly(run, box, error)
        if tell(label, error):
            raise SystemExit(1) from None
        raise


def _asked_to_end(error: BaseException) -> bool:
    """Whether an error is the end that a signal asked for."""
    return isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128


def _end_badly(run: Run, box: outbox.Outbox, error: BaseException) -> None:
    status = "KILLED" if isinstance(error, KeyboardInterrupt) or _asked_to_end(error) else "FAILED"
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, SystemExit) and not error.code:
        status, trace = "FINISHED", ""
    if _asked_to_end(error):
        trace = ""
    try:
        _close(run, box, status, trace)
    except OSError as second:
        sys.stderr.write(f"warning: the run stays open in MLflow: {store.one_line(second):.300}\n")
