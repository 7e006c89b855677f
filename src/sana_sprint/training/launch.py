"""The only Ray file: distillation by Ray Train, on a local cluster started and stopped here or on RAY_ADDRESS.

Machine settings: SANA_SPRINT_WORKERS (default: the GPUs of the cluster, else 1), SANA_SPRINT_SHARD=1 (networks spread
over the workers, see sharding.py). Workers rebuild everything from the
folders of `Job`, so nothing heavy travels; a restarted worker group goes on from the newest whole checkpoint.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sana_sprint import process, storage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sana_sprint.training.job import Job

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_worker_niceness": "0",
}
RESTARTS = 2  # of the workers, after one of them dies
FAULT = "fault-{rank}.txt"  # in the folder of the checkpoints: what a restart would only meet again


def run(job: Job) -> Path:
    """Trains to the end and returns the folder of the final checkpoint. Raises ValueError with the worker's own line
    when training fails for good."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    if job.finished():
        return job.final
    for old in faults(job):
        old.unlink()
    with cluster() as (workers, use_gpu, cores), tempfile.TemporaryDirectory() as scratch:
        share = max(1, cores // workers)
        trainer = TorchTrainer(
            train_on_worker,
            train_loop_config={
                "job": ray.put(job),  # a reference: the controller would import all that a job is made of
                "cores": share,
                "sharded": os.environ.get("SANA_SPRINT_SHARD") == "1",
            },
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=use_gpu,
                resources_per_worker=None if use_gpu else {"CPU": min(share, cores / workers)},
            ),
            run_config=RunConfig(
                name=f"distill-{job.size}",
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=RESTARTS),
            ),
        )
        try:
            with asked_to_stop(job.checkpoints) as asked:
                trainer.fit()
        except Exception as error:
            if not faults(job):
                raise ValueError(f"distillation of {job.size} stopped: {root_cause(error)}") from error
    if said := faults(job):
        raise ValueError(f"distillation of {job.size} stopped: {said[0].read_text()}")
    if asked and not job.finished():
        raise SystemExit(128 + asked[0])
    assert job.finished(), job.final
    return job.final


def faults(job: Job) -> list[Path]:
    """Returns the files in which workers have said what ails the job."""
    return sorted(job.checkpoints.glob(FAULT.format(rank="*")))


@contextmanager
def asked_to_stop(folder: Path) -> Iterator[list[int]]:
    """Within the block SIGTERM asks the workers to save and end, by a file in `folder` that they all see; yields the
    list of signals that came."""
    from sana_sprint.training import checkpoints

    asked: list[int] = []
    (folder / checkpoints.STOP).unlink(missing_ok=True)

    def ask(number: int, _frame: object) -> None:
        asked.append(number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / checkpoints.STOP).touch()
        sys.stderr.write("asked to stop: writing a checkpoint first\n")

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
        (folder / checkpoints.STOP).unlink(missing_ok=True)


def root_cause(error: BaseException) -> str:
    """Returns the last line of the innermost error, which names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if "Error: " in line and not line.startswith("ray.")]
    return (raised or lines or [repr(error)])[-1].removeprefix("ValueError: ")


class cluster:  # noqa: N801  used as a context manager
    """Yields (workers, use_gpu, cores) of the cluster in use; a cluster started here is stopped at the end. Within
    another such block the cluster is that one's."""

    def __enter__(self) -> tuple[int, bool, int]:
        """Joins RAY_ADDRESS or starts a local cluster."""
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import ray

        self.inner = ray.is_initialized()
        if not self.inner:
            self.join()
        resources = ray.cluster_resources()
        gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        return machine_workers(gpus), gpus > 0, cores

    @staticmethod
    def join() -> None:
        """Connects this process to a cluster. Raises ValueError where RAY_ADDRESS names none."""
        import ray

        address = os.environ.get("RAY_ADDRESS")
        sys.stdout.write(f"joining Ray at {address}\n" if address else "starting a local Ray cluster, 20 s or so\n")
        sys.stdout.flush()
        if not address:
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
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

    def __exit__(self, *_: object) -> None:
        """Leaves the cluster, which stops one that was started here."""
        import ray

        if not self.inner:
            ray.shutdown()


def worker_environment(address: str | None) -> dict[str, Any]:
    """Returns Ray's runtime_env. Workers of a cluster started here run this interpreter; Ray hands its path to a
    shell as it stands, so a path with a space in it must come quoted."""
    here = {} if address else {"py_executable": shlex.quote(sys.executable)}
    return {"env_vars": QUIET, "worker_process_setup_hook": "sana_sprint.training.launch.hush"} | here


def hush() -> None:
    """Settles each of Ray's processes, silences in it the cleaner that warns every second that it finds no dashboard,
    and tells it which cluster is its own: the cleaner looks for one by itself and dies where it finds two."""
    import ray

    process.settle()
    os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    cleaner = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
    logging.getLogger(cleaner).setLevel(logging.ERROR)


def machine_workers(gpus: int) -> int:
    """Returns SANA_SPRINT_WORKERS or its default. Raises ValueError when it is no positive number, or more than the
    GPUs that are to be had: Ray would wait for them for ever."""
    chosen = os.environ.get("SANA_SPRINT_WORKERS", str(max(gpus, 1)))
    if not chosen.isdigit() or chosen == "0":
        raise ValueError(f"SANA_SPRINT_WORKERS={chosen}: must be a positive number of workers")
    if 0 < gpus < int(chosen):
        raise ValueError(f"SANA_SPRINT_WORKERS={chosen}: the cluster has {gpus} GPUs, one for each worker")
    return int(chosen)


def train_on_worker(config: dict[str, Any]) -> None:
    """Runs one worker's share of the training."""
    import ray
    import ray.train.torch
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment

    from sana_sprint.models import threads
    from sana_sprint.training import attempts, draws, health, sharding

    given: Job = ray.get(config["job"])
    if faults(given):
        return
    threads.use_fastest(config["cores"])
    context = ray.train.get_context()
    share = draws.Share(context.get_world_rank(), context.get_world_size())

    def strategy() -> dict[str, Any]:
        device = ray.train.torch.get_device()
        spread = sharding.Sharded(device, share.world) if config["sharded"] else None
        way = spread or RayDDPStrategy(find_unused_parameters=True)
        return {"accelerator": "auto", "devices": "auto", "strategy": way, "plugins": [RayLightningEnvironment()]}

    try:
        attempts.fit(given, share, strategy)
    except (ValueError, OSError) as error:
        said = given.checkpoints / FAULT.format(rank=share.rank)
        storage.write_text(said, " ".join(str(error).split()))
        if not isinstance(error, health.Ill):  # which all workers are; else the others wait for this one
            raise
