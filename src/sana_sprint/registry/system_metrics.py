"""The load of the machine while a stage runs: processor, memory, disk, network and GPU where there is one, on MLflow's
page under "System metrics".

MLflow's own monitors measure; their thread would talk to the server itself, which may be away, so the samples go the
way of all records. MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL sets the seconds between them and
MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false turns them off, as elsewhere. Only the machine of the stage's own process is
seen, not that of a worker elsewhere.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

INTERVAL, ENABLED = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
INTERVAL_DEFAULT_S = 10.0
PREFIX = "system/"


class Recorder(Protocol):
    """Where the samples go; track.Recorder is one."""

    def metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Records numbers."""


def interval_s() -> float:
    """Returns the seconds between samples, 0 for none at all. Raises ValueError for what is no such number."""
    if os.environ.get(ENABLED, "").strip().lower() in ("0", "false"):
        return 0.0
    text = os.environ.get(INTERVAL, "").strip()
    try:
        seconds = float(text) if text else INTERVAL_DEFAULT_S
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ValueError(f"{INTERVAL} is {text!r}, not a number of seconds above 0; {ENABLED}=false turns it off")
    return seconds


def monitors() -> list[Any]:
    """Returns MLflow's monitors of what this machine has."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        found.append(GPUMonitor())
    except Exception:  # noqa: BLE001  no nvidia-ml-py, no driver or no GPU: each says so in its own way
        return found
    return found


class Sampler:
    """Samples in a thread from `start` to `stop`, at least once. A fault of a monitor ends the samples only."""

    def __init__(self, recorder: Recorder, every_s: float) -> None:
        self.recorder, self.every_s = recorder, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_sampling, daemon=True, name="system-metrics")

    def start(self) -> None:
        """Begins to sample."""
        self._thread.start()

    def stop(self) -> None:
        """Takes a last sample and ends."""
        self._stop.set()
        self._thread.join()

    def _keep_sampling(self) -> None:
        try:
            self._sample_until_stopped()
        except Exception as error:  # noqa: BLE001  whatever a driver does, the stage is worth more
            sys.stderr.write(f"warning: no more system metrics of this stage: {error!r:.200}\n")

    def _sample_until_stopped(self) -> None:
        import psutil

        psutil.cpu_percent()  # the first call of a process knows no interval and says 0
        watching, step, last = monitors(), 0, False
        while not last:
            last = self._stop.wait(self.every_s)
            values: dict[str, float] = {}
            for monitor in watching:
                monitor.collect_metrics()
                values |= monitor.aggregate_metrics()
                monitor.clear_metrics()
            self.recorder.metrics({f"{PREFIX}{name}": value for name, value in values.items()}, step)
            step += 1


@contextmanager
def sampled(recorder: Recorder) -> Iterator[None]:
    """Samples the machine's load during the block."""
    every_s = interval_s()
    sampler = Sampler(recorder, every_s) if every_s else None
    if sampler:
        sampler.start()
    try:
        yield
    finally:
        if sampler:
            sampler.stop()
