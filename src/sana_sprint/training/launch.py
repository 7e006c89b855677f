"""The only Ray file: distillation by Ray Train, on a local cluster started and stopped here or on RAY_ADDRESS.

Machine settings: SANA_SPRINT_WORKERS (default: the GPUs of the cluster, else 1). Workers rebuild everything from the
folders of `Job`, so nothing heavy travels; a restarted worker group goes on from the newest whole checkpoint.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sana_sprint import storage

if TYPE_CHECKING:
    from sana_sprint.config import Distill, Sampling
    from sana_sprint.training.callbacks import Recorder

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_worker_niceness": "0",
}
RESTARTS = 2


@dataclass(frozen=True)
class Job:
    """What a worker needs: absolute folders, params, where to record."""

    size: str
    trigflow: Path
    teacher: Path
    latents: Path
    checkpoints: Path
    grids: Path
    curves: Path
    params: Distill
    sampling: Sampling
    sigma_d: float
    key: str
    recorder: Recorder | None


def run(job: Job) -> Path:
    """Trains to the end and returns the folder of the final checkpoint. Raises ValueError with the worker's own line
    when training fails for good."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    final = job.checkpoints / f"step-{job.params.iterations:07d}"
    if finished(job, final):
        return final
    with cluster() as (workers, use_gpu, cores), tempfile.TemporaryDirectory() as scratch:
        trainer = TorchTrainer(
            train_on_worker,
            train_loop_config={"job": job, "cores": max(1, cores // workers)},
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=use_gpu,
                resources_per_worker=None if use_gpu else {"CPU": max(1, cores // workers)},
            ),
            run_config=RunConfig(
                name=f"distill-{job.size}",
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=RESTARTS),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            raise ValueError(f"distillation of {job.size} stopped: {root_cause(error)}") from error
    assert finished(job, final), final
    return final


def finished(job: Job, final: Path) -> bool:
    """Whether the final checkpoint of this very job is there, whole."""
    from sana_sprint.training import checkpoints

    return checkpoints.newest(job.checkpoints, job.key) == final


def root_cause(error: BaseException) -> str:
    """Returns the last line of the innermost error, which names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if "Error: " in line and not line.startswith("ray.")]
    return (raised or lines or [repr(error)])[-1].removeprefix("ValueError: ")


class cluster:  # noqa: N801  used as a context manager
    """Yields (workers, use_gpu, cores) of the cluster in use; a cluster started here is stopped at the end."""

    def __enter__(self) -> tuple[int, bool, int]:
        """Joins RAY_ADDRESS or starts a local cluster."""
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import ray

        address = os.environ.get("RAY_ADDRESS")
        sys.stdout.write(f"joining Ray at {address}\n" if address else "starting a local Ray cluster, 20 s or so\n")
        sys.stdout.flush()
        if not address:
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        try:
            ray.init(
                address=address,
                include_dashboard=False,
                log_to_driver=True,
                logging_level="ERROR",
                runtime_env=worker_environment(address),
            )
        except ConnectionError as error:
            raise ValueError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({error})") from None
        resources = ray.cluster_resources()
        gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        return machine_workers(gpus), gpus > 0, cores

    def __exit__(self, *_: object) -> None:
        """Leaves the cluster, which stops one that was started here."""
        import ray

        ray.shutdown()


def worker_environment(address: str | None) -> dict[str, Any]:
    """Returns Ray's runtime_env. Workers of a cluster started here run this interpreter; Ray hands its path to a
    shell as it stands, so a path with a space in it must come quoted."""
    here = {} if address else {"py_executable": shlex.quote(sys.executable)}
    return {"env_vars": QUIET, "worker_process_setup_hook": "sana_sprint.training.launch.hush"} | here


def hush() -> None:
    """Silences, in each of Ray's processes, the cleaner that warns every second that it finds no dashboard."""
    cleaner = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
    logging.getLogger(cleaner).setLevel(logging.ERROR)


def machine_workers(gpus: int) -> int:
    """Returns SANA_SPRINT_WORKERS or its default. Raises ValueError when it is no positive number."""
    chosen = os.environ.get("SANA_SPRINT_WORKERS", str(max(gpus, 1)))
    if not chosen.isdigit() or chosen == "0":
        raise ValueError(f"SANA_SPRINT_WORKERS={chosen}: must be a positive number of workers")
    return int(chosen)


def train_on_worker(config: dict[str, Any]) -> None:
    """Runs one worker's share of the training."""
    import lightning as L
    import ray.train
    import ray.train.lightning
    import ray.train.torch
    from torch.utils.data import DataLoader

    from sana_sprint.models import threads
    from sana_sprint.training import callbacks, checkpoints, draws

    job: Job = config["job"]
    context = ray.train.get_context()
    threads.use_fastest(config["cores"])
    share = draws.Share(context.get_world_rank(), context.get_world_size())
    source = checkpoints.newest(job.checkpoints, job.key)
    start = int(storage.read_json(source / checkpoints.STATE)["iteration"]) if source else 0
    if source and share.rank == 0:
        sys.stdout.write(f"distill {job.size}: going on from {source}\n")
    module, data, grids = pieces(job, share)
    steps = 2 * job.params.iterations
    curves = callbacks.Curves(job.curves, job.recorder, 2 * job.params.log_every, 2 * start)
    callbacks.quiet()
    trainer = L.Trainer(
        max_epochs=1,
        precision=job.params.precision,
        accelerator="auto",
        devices="auto",
        strategy=ray.train.lightning.RayDDPStrategy(find_unused_parameters=True),
        plugins=[ray.train.lightning.RayLightningEnvironment()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[
            callbacks.Progress(f"distill {job.size}", steps, 2 * start),
            callbacks.StopOnNonFinite(),
            curves,
            grids,
            checkpoints.Checkpoints(
                job.checkpoints,
                source,
                job.key,
                job.params.checkpoint_every,
                job.params.keep_checkpoints,
                steps,
            ),
        ],
    )
    trainer = ray.train.lightning.prepare_trainer(trainer)
    trainer.fit(module, DataLoader(data, batch_size=None, sampler=range(2 * start, steps)))


def pieces(job: Job, share: Any) -> tuple[Any, Any, Any]:
    """Returns module, batches and grid callback of a job."""
    from sana_sprint.data.loader import Latents
    from sana_sprint.models import bundle
    from sana_sprint.models.networks import Text
    from sana_sprint.training import distill, draws, grids

    latents = Latents(job.latents, "train")
    module = distill.Distillation(
        bundle.load_transformer(job.trigflow),
        bundle.load_transformer(job.teacher),
        Text(*latents.null),
        job.params,
        job.sigma_d,
        share,
    )
    data = draws.Batches(latents, job.params.global_batch, job.params.seed, 2 * job.params.iterations, share)
    shown = Latents(job.latents, "eval")
    text = Text(*shown.text(shown.batch(0, min(12, len(shown)), 0)))
    callback = grids.Grids(
        bundle.load_vae(job.trigflow),
        text,
        tuple(latents.x.shape[1:]),
        job.sampling,
        job.sigma_d,
        job.params.grid_every,
        job.grids,
        job.recorder,
    )
    return module, data, callback


def clear(folder: Path) -> None:
    """Removes the checkpoints of a finished training."""
    shutil.rmtree(folder, ignore_errors=True)


def averaged(final: Path, trigflow: Path) -> Any:
    """Returns the student's transformer with the EMA weights of the final checkpoint, every key matched."""
    from safetensors.torch import load_file

    from sana_sprint.models import bundle

    transformer = bundle.load_transformer(trigflow)
    prefix = "transformer."
    weights = load_file(final / "averaged.safetensors")
    transformer.load_state_dict(
        {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}, strict=True
    )
    return transformer.eval()
