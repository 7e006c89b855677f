"""One worker's share of a distillation, from the newest good checkpoint to the end, through returns when the run
falls ill. Ray (training/launch.py) calls `fit` on each worker; tests and ablations call it in their own process."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING, Any

import torch

from sana_sprint.models import threads
from sana_sprint.training import batches, callbacks, checkpoints, distill, draws, grids, health, saving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sana_sprint.config import Distill
    from sana_sprint.training.job import Job


def fit(job: Job, share: draws.Share, strategy: Callable[[], dict[str, Any]]) -> None:
    """Trains to the end, or to the iteration after a request to stop. `strategy` returns arguments of L.Trainer, new
    ones for every return. Raises `health.Ill` when the run has fallen ill more often than distill.health.returns_max.
    """
    returns = 0
    if share.rank == 0:
        warn_of_cut_groups(job.params, share)
        say_what_hides(job)
    while True:
        if returns:
            gc.collect()  # networks and trainer of the attempt that fell ill point to each other
            torch.cuda.empty_cache()
        source = checkpoints.newest(job.checkpoints, job.key)
        attempt = max(returns, checkpoints.state(source)["attempt"] if source else 0)
        if share.rank == 0 and source:
            checkpoints.go_on_from(source, f"distill {job.size}: ")
        try:
            train(job, share, source, attempt, strategy())
            return
        except checkpoints.Stopped:
            return
        except health.Ill as ill:
            go_back(job, share, ill, attempt + 1, source if returns else None)
            returns = attempt + 1


def go_back(job: Job, share: draws.Share, ill: health.Ill, returns: int, tried: Path | None) -> None:
    """Makes ready for a return: checkpoints that hold the fault already go; where no grid tells which these are, one
    `tried` by a return that has made none since does, if there is another before it. Raises `health.Ill` after too
    many."""
    good = ill.proved
    if good is None and tried and checkpoints.until(job.checkpoints, job.params.iterations) == tried:
        before = checkpoints.until(job.checkpoints, checkpoints.number(tried) - 1)
        good = checkpoints.number(before if before and not checkpoints.broken(before) else tried)
    if good is not None:
        checkpoints.forget_after(job.checkpoints, good)
    if returns > job.params.health.returns_max:
        tries = f"{returns} time" + "s" * (returns > 1)
        raise health.Ill(f"ill {tries}, given up: {ill}") from None
    if share.rank == 0:
        sys.stdout.write(f"distill {job.size}: {ill}\ndistill {job.size}: return {returns}, other draws\n")
        if job.recorder:
            with callbacks.despite_full_disk(f"return-{returns}.txt"):
                job.recorder.text(f"{ill}\n", f"return-{returns}.txt")


def warn_of_cut_groups(params: Distill, share: draws.Share) -> None:
    """Says so when the rows of a pass are too few for the groups in which the heads normalise."""
    from sana_sprint.models.heads import group_size

    batch, virtual = params.global_batch, params.heads.virtual_batch
    own = max(1, batch // share.world)
    whole, cut = group_size(batch, virtual), group_size(own // draws.passes_of(own), virtual)
    if "ladd" in params.terms and params.heads.norm == "batch" and whole != cut:
        sys.stderr.write(
            f"warning: {share.world} workers, or {draws.MICRO_BATCH}, cut the heads' groups of {whole} pictures to "
            f"{cut}, so the losses differ from those of one whole batch; change them or distill.heads.virtual_batch\n"
        )


def say_what_hides(job: Job) -> None:
    """Says so when the heads' accuracy cannot tell that they lose: a norm over the batch takes each set's mean away."""
    if "ladd" in job.params.terms and job.params.heads.norm == "batch":
        sys.stdout.write(
            f"distill {job.size}: with distill.heads.norm batch the heads' accuracy is about 0.5 also when they lose; "
            "only norm layer can tell\n"
        )


def train(job: Job, share: draws.Share, source: Path | None, attempt: int, strategy: dict[str, Any]) -> None:
    """Runs the iterations after those of the checkpoint `source`, or all, with the draws of `attempt`."""
    import lightning as L
    from torch.utils.data import DataLoader

    turns, p = job.params.turns, job.params
    state = checkpoints.state(source) if source else None
    if state and state.get("workers") == share.world:
        threads.go_on_with(state["threads"])
    start, watch = state["iteration"] if state else 0, health.Health(p, state)
    module, data, drawn = pieces(job, share, attempt, watch)
    curves = callbacks.Curves(job.curves, job.recorder, turns * p.log_every, turns * start, lambda _: watch.values)
    keep = saving.Checkpoints(job.checkpoints, source, job.key, p, watch)
    progress = callbacks.Progress(f"distill {job.size}", turns * p.iterations, turns * start)
    callbacks.quiet()
    trainer = L.Trainer(
        max_epochs=1,
        precision=p.precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[drawn, watch, progress, curves, keep],
        **strategy,
    )
    trainer.fit(module, DataLoader(data, batch_size=None, sampler=range(turns * start, turns * p.iterations)))


def pieces(
    job: Job, share: draws.Share, attempt: int, watch: health.Health
) -> tuple[distill.Distillation, batches.Pairs, grids.Grids]:
    """Returns module, batches and grid callback of a job."""
    from sana_sprint.data.loader import Latents
    from sana_sprint.models import bundle, passes
    from sana_sprint.models.networks import Text

    latents, params = Latents(job.latents, "train"), job.params
    student, teacher = bundle.load_transformer(job.trigflow), bundle.load_transformer(job.teacher)
    module = distill.Distillation(student, teacher, Text(*latents.null), params, job.sigma_d, share, attempt)
    passes.arrange(*module.passing)
    steps = params.turns * params.iterations
    data = batches.Pairs(latents, params.global_batch, draws.seed(params.seed, attempt), steps, share)
    shown = Latents(job.latents, "eval")
    text = Text(*shown.text(shown.batch(0, min(grids.SHOWN, len(shown)), 0)))
    return module, data, grids.Grids(job, bundle.load_vae(job.trigflow), text, tuple(latents.x.shape[1:]), watch)
