"""Ray, where a stage has workers: a local cluster that is started and stopped here, or the one at RAY_ADDRESS.

Machine settings: SANA_SPRINT_WORKERS (default: the GPUs there are, else 1), RAY_ADDRESS. Ray is imported when a cluster
is joined, so that a machine with one worker never loads it.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from sana_sprint import process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Share = TypeVar("Share")
Made = TypeVar("Made")
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_worker_niceness": "0",
}
STARTS, SLOW_START = 3, "timed out during startup"  # Ray waits 30 s, which a busy machine may need, and no longer
RESTARTS = 2  # of the workers, after one of them dies


class Place(NamedTuple):
    """What a stage has of a cluster: workers, whether each has a GPU, and the cores of all machines."""

    workers: int
    use_gpu: bool
    cores: int

    @property
    def cores_each(self) -> int:
        """The cores that a worker computes with."""
        return max(1, self.cores // self.workers)

    @property
    def needs(self) -> dict[str, float]:
        """What Ray is to keep free for a worker, as its resources: a GPU, or a share of the cores."""
        return {"GPU": 1} if self.use_gpu else {"CPU": min(self.cores_each, self.cores / self.workers)}


class Joined:
    """A context manager that yields a cluster's Place; a cluster started here is stopped at the end. Within another
    such block the cluster is that one's."""

    def __enter__(self) -> Place:
        """Joins RAY_ADDRESS or starts a local cluster."""
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import ray

        self.inner = ray.is_initialized()
        if not self.inner:
            self.join()
        resources = ray.cluster_resources()
        gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        return Place(machine_workers(gpus), gpus > 0, cores)

    @staticmethod
    def join() -> None:
        """Connects this process to a cluster. Raises ValueError where RAY_ADDRESS names none, or none starts here."""
        import ray

        address = os.environ.get("RAY_ADDRESS")
        sys.stdout.write(f"joining Ray at {address}\n" if address else "starting a local Ray cluster, 20 s or so\n")
        sys.stdout.flush()
        if not address:
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        for tries in range(1, STARTS + 1):
            try:
                ray.init(
                    address=address or "local",
                    include_dashboard=False,
                    log_to_driver=True,
                    logging_level="ERROR",
                    runtime_env=worker_environment(address),
                )
            except ConnectionError as error:
                raise ValueError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({error})") from None
            except Exception as error:
                if SLOW_START not in str(error):
                    raise
                ray.shutdown()
                if tries == STARTS:
                    raise ValueError(f"Ray did not start in {STARTS} tries of 30 s: is this machine busy?") from error
                sys.stderr.write("warning: Ray did not start within 30 s; trying again\n")
            else:
                return

    def __exit__(self, *_: object) -> None:
        """Leaves the cluster, which stops one that was started here."""
        import ray

        if not self.inner:
            ray.shutdown()


def worker_environment(address: str | None) -> dict[str, Any]:
    """Returns Ray's runtime_env. Workers of a cluster started here run this interpreter; Ray hands its path to a
    shell as it stands, so a path with a space in it must come quoted."""
    here = {} if address else {"py_executable": shlex.quote(sys.executable)}
    return {"env_vars": QUIET, "worker_process_setup_hook": "sana_sprint.cluster.hush"} | here


def hush() -> None:
    """Settles each of Ray's processes, silences in it the cleaner that warns every second that it finds no dashboard,
    and tells it which cluster is its own: the cleaner looks for one by itself and dies where it finds two."""
    import ray

    process.settle()
    os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    cleaner = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
    logging.getLogger(cleaner).setLevel(logging.ERROR)


def chosen_workers(default: int) -> int:
    """Returns SANA_SPRINT_WORKERS, or `default` where it is not set. Raises ValueError when it is no positive
    number."""
    chosen = os.environ.get("SANA_SPRINT_WORKERS", str(default))
    if not chosen.isdigit() or chosen == "0":
        raise ValueError(f"SANA_SPRINT_WORKERS={chosen}: must be a positive number of workers")
    return int(chosen)


def machine_workers(gpus: int) -> int:
    """Returns SANA_SPRINT_WORKERS or its default. Raises ValueError when it is no positive number, or more than the
    GPUs that are to be had: Ray would wait for them for ever."""
    chosen = chosen_workers(max(gpus, 1))
    if 0 < gpus < chosen:
        raise ValueError(f"SANA_SPRINT_WORKERS={chosen}: the cluster has {gpus} GPUs, one for each worker")
    return chosen


class Worker(Generic[Share, Made]):
    """What one worker runs: `begin`, told how many cores it has, and what that returns for each share."""

    def __init__(self, begin: Callable[[int], Callable[[Share], Made]], cores: int) -> None:
        self.work = begin(cores)

    def carry_out(self, share: Share) -> Made:
        """Returns what the work makes of a share."""
        return self.work(share)


class Workers(Generic[Share, Made]):
    """A context manager: as many workers of a cluster that was joined as its Place says, each with its GPU or its share
    of the cores. One that dies is started again, and its share is given out again, RESTARTS times."""

    def __init__(self, begin: Callable[[int], Callable[[Share], Made]], place: Place) -> None:
        self.begin, self.place = begin, place

    def __enter__(self) -> Workers[Share, Made]:
        """Starts the workers."""
        import ray

        needs, number = self.place.needs, self.place.workers
        again = {"max_restarts": -1, "max_task_retries": RESTARTS}
        remote = ray.remote(num_cpus=needs.get("CPU", 0), num_gpus=needs.get("GPU", 0), **again)(Worker)
        self.idle: list[Any] = [remote.remote(self.begin, self.place.cores_each) for _ in range(number)]
        self.busy: dict[Any, tuple[Any, Share]] = {}
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the workers, whatever they are at."""
        import ray

        for worker in (*self.idle, *(worker for worker, _ in self.busy.values())):
            ray.kill(worker)

    def spread(self, shares: Iterable[Share]) -> Iterator[tuple[Share, Made]]:
        """Yields every share with what was made of it, in the order in which they are done. Raises ValueError with the
        worker's own line where one fails for good."""
        import ray

        try:
            for share in shares:
                if not self.idle:
                    yield self._one_done()
                worker = self.idle.pop()
                self.busy[worker.carry_out.remote(share)] = (worker, share)
            while self.busy:
                yield self._one_done()
        except ray.exceptions.RayTaskError as error:
            raise ValueError(root_cause(error)) from error
        except ray.exceptions.RayError as error:
            raise ValueError(
                f"Ray's workers died {RESTARTS + 1} times over one share of the work ({root_cause(error)}); free "
                f"memory, or lower SANA_SPRINT_WORKERS, and run this again"
            ) from error

    def _one_done(self) -> tuple[Share, Made]:
        import ray

        (done,), _ = ray.wait(list(self.busy))
        worker, share = self.busy.pop(done)
        self.idle.append(worker)
        return share, ray.get(done)


def root_cause(error: BaseException) -> str:
    """Returns the last line of the innermost error, which names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if "Error: " in line and not line.startswith("ray.")]
    return (raised or lines or [repr(error)])[-1].removeprefix("ValueError: ")
