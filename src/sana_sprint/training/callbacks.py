"""What every training does besides its step: say how far it is, keep its curves, stop when it breaks."""

from __future__ import annotations

import errno
import logging
import sys
import time
import warnings
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import lightning as L
import torch

from sana_sprint import storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Values = Callable[[L.Trainer], dict[str, float]]

TIME_LEFT = "time_left_s"


def quiet() -> None:
    """Silences Lightning's adverts and hints: what a training says of itself comes from `Progress`."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for hint in (".*treespec.*", ".*does not have many workers.*", ".*eval mode.*", ".*[Gg]rad strides.*"):
        warnings.filterwarnings("ignore", hint)


class Recorder(Protocol):
    """Where metrics and pictures go; registry.track.Recorder is one."""

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        """Records numbers."""

    def picture(self, image: Any, name: str, step: int | None = None) -> None:
        """Records a picture."""

    def text(self, content: str, name: str) -> None:
        """Records a text file."""


def newest(trainer: L.Trainer) -> dict[str, float]:
    """Returns the newest value of every logged metric, as this process knows it."""
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def mend(error: OSError) -> str:
    """Returns what is to be done about something that could not be written, of which torch and safetensors give no
    number: `free space`, unless something else than room is missing."""
    full = (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: a limit on file size
    return "free space" if error.errno in full else "mend that"


@contextmanager
def despite_full_disk(what: str) -> Iterator[None]:
    """Lets a run go on without something that could not be written."""
    try:
        yield
    except OSError as error:
        sys.stderr.write(f"warning: no {what}: {error}; {mend(error)}, the run goes on\n")


def shown(values: dict[str, float]) -> str:
    """Returns metrics as one line, those of one network together: `student: scm -5.23, r 1  heads: hinge 0.98`."""
    groups = defaultdict(list)
    for name, value in values.items():
        group, _, metric = name.rpartition("/")
        groups[group].append(f"{metric} {value:.3g}")
    return "  ".join(f"{group}: {', '.join(each)}" if group else ", ".join(each) for group, each in groups.items())


def clock(seconds: float) -> str:
    """Returns whole minutes and seconds: `8m54s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s"


class Progress(L.Callback):
    """Prints a line every few seconds: step, the newest of every metric, steps per second, time left."""

    def __init__(self, name: str, steps: int, start: int = 0, every_s: float = 5.0) -> None:
        self.name, self.steps, self.start, self.every_s = name, steps, start, every_s
        self.started_at = self.said_at = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self.started_at = self.said_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Says where the run is."""
        done, now = batch["step"] + 1, time.monotonic()
        if not trainer.is_global_zero or (now - self.said_at < self.every_s and done < self.steps):
            return
        self.said_at = now
        per_s = (done - self.start) / max(now - self.started_at, 1e-9)
        left_s = (self.steps - done) / max(per_s, 1e-9)
        values = {name: value for name, value in newest(trainer).items() if name != TIME_LEFT}  # told as minutes
        line = f"{self.name}  {done}/{self.steps}  {shown(values)}  {per_s:.1f}/s  {clock(left_s)} left"
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


class Curves(L.Callback):
    """Keeps every `every`-th value of the logged metrics (`values` says which), sends them to the recorder in batches,
    and writes them to a JSON file {name: [[step, value], ...]} when training ends."""

    def __init__(
        self, path: Path, recorder: Recorder | None, every: int, start: int = 0, values: Values = newest
    ) -> None:
        self.path, self.recorder, self.every, self.values = path, recorder, every, values
        self.points: dict[str, list[list[float]]] = defaultdict(list)
        if start and path.exists():
            for name, points in storage.read_json(path).items():
                self.points[name] = [p for p in points if p[0] <= start]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes down what is known before the first step."""
        if trainer.is_global_zero:
            self.take(self.values(trainer), 0)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes down the metrics of a step."""
        step = batch["step"] + 1
        if trainer.is_global_zero and step % self.every == 0:
            self.take(self.values(trainer), step)

    def take(self, values: dict[str, float], step: int) -> None:
        """Keeps and records the metrics of a step."""
        for name, value in values.items():
            self.points[name].append([step, value])
        if self.recorder and values:
            self.recorder.metrics(values, step)

    def last(self) -> dict[str, float]:
        """Returns the newest value of every metric."""
        return {name: points[-1][1] for name, points in self.points.items()}

    def save(self) -> None:
        """Writes the curves so far."""
        storage.write_json(self.path, self.points)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the curves."""
        if trainer.is_global_zero:
            self.save()


class NotFinite(ValueError):  # noqa: N818  a state of the run, worded as a sentence
    """A logged value is NaN or infinite."""


class StopOnNonFinite(L.Callback):
    """Stops with a clear line when a logged value is not finite; nothing is masked."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks at the newest metrics."""
        for name, value in trainer.callback_metrics.items():
            if not torch.isfinite(value).all():
                raise NotFinite(
                    f"step {batch['step'] + 1}: {name} is {float(value)}; lower the learning rate of this stage "
                    "or look for broken rows in its input"
                )
