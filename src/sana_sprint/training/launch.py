"""Distillation by Ray Train, on the cluster of cluster.py.

Machine settings: those of cluster.py, SANA_SPRINT_SHARD=1 (networks spread over the workers, see sharding.py), and the
switches of models/passes.py.
Workers rebuild everything from the folders of `Job`, so nothing heavy travels; a restarted worker group goes on from
the newest whole checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from sana_sprint import cluster, process, storage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ray.train.torch import TorchTrainer

    from sana_sprint.training.job import Job

FAULT = "fault-{rank}.txt"  # in the folder of the checkpoints: what a restart would only meet again


def run(job: Job) -> Path:
    """Trains to the end and returns the folder of the final checkpoint. Raises ValueError with the worker's own line
    when training fails for good."""
    from sana_sprint.training import checkpoints

    if job.finished():  # by a stage that failed after it
        checkpoints.go_on_from(job.final, f"distill {job.size}: ")
        record_again(job)
        return job.final
    with checkpoints.owned(job.checkpoints):
        for old in faults(job):
            old.unlink()
        checkpoints.sweep(job.checkpoints)
    with cluster.Joined() as place, asked_to_stop(job.checkpoints) as asked, process.interrupt_asks_to_end():
        while not (ended(job, place) or asked):
            pass
    if said := faults(job):
        raise ValueError(f"distillation of {job.size} stopped: {said[0].read_text()}")
    if asked and not job.finished():
        raise SystemExit(128 + asked[0])
    assert job.finished(), job.final
    return job.final


def record_again(job: Job) -> None:
    """Records the curves of a training that another run of the stage did, point by point."""
    if not job.recorder or not job.curves.exists():
        return
    at: dict[int, dict[str, float]] = defaultdict(dict)
    for name, points in storage.read_json(job.curves).items():
        for step, value in points:
            at[int(step)][name] = value
    for step, values in sorted(at.items()):
        job.recorder.metrics(values, step)


def ended(job: Job, place: cluster.Place) -> bool:
    """Runs the workers; returns whether they came to an end, if only to tell of a fault, and False where they died too
    often but had got further, so that they may be started again. Raises ValueError where they had not."""
    before = reached(job)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            # In the main thread Ray Train would take Ctrl-C for itself.
            ThreadPoolExecutor(1).submit(trainer(job, place, scratch).fit).result()
        except Exception as error:
            if faults(job):
                return True
            cause, now = cluster.root_cause(error), reached(job)
            if now <= before:
                raise ValueError(f"distillation of {job.size} stopped: {cause}") from error
            sys.stderr.write(
                f"warning: distill {job.size}: workers failed {1 + cluster.RESTARTS} times ({cause}), but the run came "
                f"from iteration {before} to {now} and can go on\n"
            )
            return False
    return True


def trainer(job: Job, place: cluster.Place, scratch: str) -> TorchTrainer:
    """Returns what runs the job's workers; of those that die it starts others, cluster.RESTARTS times."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from sana_sprint.models import passes
    from sana_sprint.training import draws
    from sana_sprint.training.job import BLOCKS

    return TorchTrainer(
        train_on_worker,
        train_loop_config={
            "job": ray.put(job),  # a reference: the controller would import all that a job is made of
            "cores": place.cores_each,
            "sharded": os.environ.get("SANA_SPRINT_SHARD") == "1",
            "switches": {k: v for k, v in os.environ.items() if k in (*passes.SWITCHES, BLOCKS, draws.MICRO_BATCH)},
        },
        scaling_config=ScalingConfig(
            num_workers=place.workers,
            use_gpu=place.use_gpu,
            resources_per_worker=None if place.use_gpu else place.needs,
        ),
        run_config=RunConfig(
            name=f"distill-{job.size}",
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=cluster.RESTARTS),
        ),
    )


def reached(job: Job) -> int:
    """Returns the iteration of the newest whole checkpoint, or 0."""
    from sana_sprint.training import checkpoints

    newest = checkpoints.newest(job.checkpoints, job.key)
    return checkpoints.number(newest) if newest else 0


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


def train_on_worker(config: dict[str, Any]) -> None:
    """Runs one worker's share of the training."""
    import ray
    import ray.train.torch
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment

    from sana_sprint.models import threads
    from sana_sprint.training import attempts, callbacks, checkpoints, draws, health, sharding

    given: Job = ray.get(config["job"])
    if faults(given):
        return
    os.environ |= config["switches"]  # a cluster's workers have another environment than the stage
    threads.use_fastest(config["cores"])
    context = ray.train.get_context()
    share = draws.Share(context.get_world_rank(), context.get_world_size())

    def strategy() -> dict[str, Any]:
        device = ray.train.torch.get_device()
        spread = sharding.Sharded(device, share.world) if config["sharded"] else None
        way = spread or RayDDPStrategy(find_unused_parameters=True)
        return {"accelerator": "auto", "devices": "auto", "strategy": way, "plugins": [RayLightningEnvironment()]}

    try:
        with checkpoints.owned(given.checkpoints) if share.rank == 0 else nullcontext():
            attempts.fit(given, share, strategy)
    except (ValueError, OSError) as error:
        said = given.checkpoints / FAULT.format(rank=share.rank)
        with callbacks.despite_full_disk(str(said)):
            storage.write_text(said, " ".join(str(error).split()))
        if not isinstance(error, health.Ill):  # which all workers are; else the others wait for this one
            raise
