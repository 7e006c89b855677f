"""Records of a run on their way to the tracking store: on disk until the store has taken them.

A stage, and its workers on any machine that sees the folder, append records to data/mlflow/unsent/<run id> and go on at
once; a thread of the stage's own process sends them. What a store that is away did not take by the end of a stage, or
what a killed stage left, the next stage sends, or `sana-sprint send`. A metric sent twice is there
once, since MLflow's key of a point is all of it; a picture may come twice.

A record is one of {"metrics": [[name, value, at_ms, step], ...]}, {"picture": file, "name", "step", "at_ms"},
{"file": file} and {"end": status, "at_ms", "parent_id", "trace"}; a file is named relative to the folder. Metrics and
pictures are of the outbox's run, or of the one that "run" names.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sana_sprint import storage
from sana_sprint.registry import dashboard, store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow.tracking import MlflowClient

    Record = dict[str, Any]

FOLDER = store.FOLDER / "unsent"
RECORDS, ABOUT, LOCK = "records.jsonl", "run.json", "lock"
METRICS_PER_BATCH = 1000  # limit of MLflow's log-batch request
POLL_S, RETRY_MAX_S = 0.5, 30.0
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")  # the last: the run was deleted
ORDER = ("metrics", "picture", "file", "end")


@contextmanager
def _locked(path: Path, mode: str) -> Iterator[Any]:
    with path.open(mode) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def write(folder: Path, record: Record) -> None:
    """Appends a record to the outbox in `folder`. Raises OSError when the disk is full."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / RECORDS, "ab+") as file:
        if os.fstat(file.fileno()).st_size:
            file.seek(-1, os.SEEK_END)
        cut = file.read(1) not in (b"", b"\n")  # a writer was killed in the middle of a line
        file.write(b"\n" * cut + json.dumps(record).encode() + b"\n")


def place_for(folder: Path, name: str) -> Path:
    """Returns a path in the outbox for a file of this name, of which there may be several."""
    place = folder / uuid.uuid4().hex / name
    place.parent.mkdir(parents=True)
    return place


def read(folder: Path) -> tuple[list[tuple[int, Record]], int]:
    """Returns the records with the place in the file where each begins, and the file's size in bytes."""
    path = folder / RECORDS
    if not path.exists():
        return [], 0
    with _locked(path, "rb") as file:
        content = file.read()
    found, start = [], 0
    for line in content.splitlines(keepends=True):
        try:
            found.append((start, json.loads(line)))
        except json.JSONDecodeError:
            if line.strip():
                sys.stderr.write(f"warning: {path}: a record was cut by a kill and is left out\n")
        start += len(line)
    return found, len(content)


@dataclass
class Outbox:
    """The sender of one run's records. At most one process holds it: `held` says whether this one does."""

    uri: str
    run_id: str
    folder: Path
    sent: set[int] = field(default_factory=set)
    refused: str = ""
    away: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def hold(self) -> bool:
        """Takes the outbox for this process until it ends; False while another has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            return False
        return True

    def start(self) -> None:
        """Begins to send what is written from now on, in a thread."""
        assert self.hold(), f"{self.folder} is another's"
        storage.write_json(self.folder / ABOUT, {"uri": store.shown(self.uri), "run_id": self.run_id})
        self._thread = threading.Thread(target=self._keep_sending, daemon=True, name="outbox")
        self._thread.start()

    def _keep_sending(self) -> None:
        delay_s = POLL_S
        while not self._stop.wait(delay_s):
            delay_s = POLL_S if self.attempt() else min(2 * delay_s, RETRY_MAX_S)

    def attempt(self) -> bool:
        """Sends what there is; False, with `away` saying why, when the store did not take it all."""
        records, size = read(self.folder)
        waiting = [(start, record) for start, record in records if start not in self.sent]
        if not waiting:
            return True
        try:
            self._send(store.client(self.uri), waiting)
        except Exception as error:  # noqa: BLE001  whatever it is, the records stay and the training goes on
            self._say_away(error)
            return False
        if self.away:
            sys.stderr.write(f"tracking server {store.shown(self.uri)} takes records again: {len(waiting)} sent\n")
            self.away = ""
        self._forget(records, size)
        return True

    def _say_away(self, error: Exception) -> None:
        if not self.away:
            sys.stderr.write(
                f"warning: tracking server {store.shown(self.uri)} does not take records "
                f"({store.one_line(error):.200}): they wait in {self.folder} and the stage goes on\n"
            )
        self.away = store.one_line(error)

    def _forget(self, records: list[tuple[int, Record]], size: int) -> None:
        """Empties the file of records, all of which are sent, unless more came meanwhile."""
        with _locked(self.folder / RECORDS, "rb+") as file:
            if file.seek(0, os.SEEK_END) != size:
                return
            file.truncate(0)
            self.sent.clear()
        for _, record in records:
            if name := record.get("picture") or record.get("file"):
                shutil.rmtree((self.folder / name).parent, ignore_errors=True)

    def _send(self, server: MlflowClient, waiting: list[tuple[int, Record]]) -> None:
        """Sends metrics first and the end last; each record that is taken is marked so at once."""
        metrics = [(start, record) for start, record in waiting if "metrics" in record]
        self._take(lambda: self._send_metrics(server, metrics), [start for start, _ in metrics])
        for kind in ORDER[1:]:
            for start, record in waiting:
                if kind in record:
                    self._take(lambda one=record: self._send_other(server, one), [start])

    def _take(self, action: Any, starts: list[int]) -> None:
        """Does `action`; what MLflow refuses for good is noted and not tried again."""
        from mlflow.exceptions import MlflowException

        try:
            action()
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            self.refused = self.refused or store.one_line(error)
        self.sent.update(starts)

    def _send_metrics(self, server: MlflowClient, records: list[tuple[int, Record]]) -> None:
        from mlflow.entities import Metric

        of: dict[str, list[Metric]] = {}
        for _, record in records:
            of.setdefault(record.get("run", self.run_id), []).extend(Metric(*point) for point in record["metrics"])
        for run_id, points in of.items():
            for first in range(0, len(points), METRICS_PER_BATCH):
                server.log_batch(run_id, metrics=points[first : first + METRICS_PER_BATCH])

    def _send_other(self, server: MlflowClient, record: Record) -> None:
        if "end" in record:
            end(server, self.run_id, record)
        elif "file" in record:
            server.log_artifact(self.run_id, str(self.folder / record["file"]))
        else:
            self._send_picture(server, record)

    def _send_picture(self, server: MlflowClient, record: Record) -> None:
        from PIL import Image

        with Image.open(self.folder / record["picture"]) as image:
            image.load()
        name, step, run_id = record["name"], record["step"], record.get("run", self.run_id)
        if step is None:
            server.log_image(run_id, image, artifact_file=f"{name}.png")
        else:
            server.log_image(run_id, image, key=name, step=step, timestamp=record["at_ms"])

    def finish(self, wait_s: float) -> bool:
        """Sends the rest, waiting at most `wait_s` for a store that is away. Returns whether all is sent; if not, says
        where the rest lies and how to send it. What MLflow refuses for good is left out, and told by `refused`.
        """
        self._stop.set()
        if self._thread:
            self._thread.join()
        deadline, delay_s = time.monotonic() + wait_s, POLL_S
        while not self.attempt():
            if time.monotonic() + delay_s > deadline:
                self._say_unsent()
                self._lock.close()
                return False
            time.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_MAX_S)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()
        return True

    def _say_unsent(self) -> None:
        left = sum(start not in self.sent for start, _ in read(self.folder)[0])
        sys.stderr.write(
            f"warning: {left} records of this run are not in {store.shown(self.uri)} ({self.away:.200}): they lie in "
            f"{self.folder}; the next stage sends them, or `sana-sprint send`\n"
        )


def end(server: MlflowClient, run_id: str, record: Record) -> None:
    """Ends a stage's run, tells it in its parent's description, and ends the parent if no other child runs, until the
    next stage opens it again; a failure stays on the parent.
    """
    status, parent_id = record["end"], record["parent_id"]
    if record["trace"]:
        server.log_text(run_id, record["trace"], "traceback.txt")
        server.set_tag(parent_id, "ended_by", status)
    server.set_terminated(run_id, status, record["at_ms"])
    dashboard.describe(server, parent_id)
    parent = server.get_run(parent_id)
    siblings = f"tags.mlflow.parentRunId = '{parent_id}' and attributes.status = 'RUNNING'"
    if not server.search_runs([parent.info.experiment_id], filter_string=siblings, max_results=1):
        server.set_terminated(parent_id, parent.data.tags.get("ended_by", status))


def left(root: Path, uri: str) -> list[Outbox]:
    """Returns the outboxes for the store at `uri` that no living process holds, held by this one from now on."""
    found = []
    for about in sorted((root / FOLDER).glob(f"*/{ABOUT}")):
        told = storage.read_json(about)
        box = Outbox(uri, told["run_id"], about.parent)
        if told["uri"] == store.shown(uri) and box.hold():
            found.append(box)
    return found


def send(root: Path, uri: str) -> list[dict[str, Any]]:
    """Sends what earlier stages have left for the store at `uri`. Returns for each run its id, how many records were
    waiting, how many still do and why, and what the store refuses for good."""
    told = []
    for box in left(root, uri):
        count = len(read(box.folder)[0])
        box.finish(0)
        unsent = sum(start not in box.sent for start, _ in read(box.folder)[0])
        told.append({"run": box.run_id, "records": count, "unsent": unsent, "why": box.away, "refused": box.refused})
    return told


def elsewhere(root: Path, uri: str) -> dict[str, int]:
    """Returns how many records wait for other stores than that at `uri`, by their addresses."""
    found: dict[str, int] = {}
    for about in sorted((root / FOLDER).glob(f"*/{ABOUT}")):
        place = storage.read_json(about)["uri"]
        if place != store.shown(uri) and (count := len(read(about.parent)[0])):
            found[place] = found.get(place, 0) + count
    return found


def told(one: dict[str, Any], uri: str) -> str:
    """Returns in words what became of the records of an earlier run."""
    became = f"but for what it refuses ({one['refused']:.200})" if one["refused"] else "now"
    return f"{one['records']} records of an earlier run, {one['run']}, are in {store.shown(uri)} {became}"


def send_left(root: Path, uri: str) -> None:
    """Sends what earlier stages have left for the store at `uri`, and says so on stderr."""
    for one in send(root, uri):
        if one["records"] and not one["unsent"]:
            sys.stderr.write(told(one, uri) + "\n")
