"""Writing and restoring the checkpoints of a training, whole or not at all; checkpoints.py says what one is."""

from __future__ import annotations

import shutil
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import lightning as L
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sana_sprint import storage
from sana_sprint.models import threads
from sana_sprint.training import callbacks, checkpoints, sharding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sana_sprint.config import Distill
    from sana_sprint.training.distill import Distillation
    from sana_sprint.training.flow import FlowTraining
    from sana_sprint.training.health import Health

    Trained: TypeAlias = Distillation | FlowTraining


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yields `path` and turns what safetensors and torch raise for a full disk into the OSError that it is: torch's own
    words are of positions in the file."""
    try:
        yield path
    except (SafetensorError, RuntimeError) as error:
        raise OSError(f"{path} could not be written, the disk may be full ({error})") from error


@contextmanager
def needed() -> Iterator[None]:
    """Adds what to do where the run cannot go on without what is written."""
    try:
        yield
    except OSError as error:
        what = f"{callbacks.mend(error)} and start again"
        raise OSError(f"{error}; {what}: it goes on from the checkpoint before") from error


def save(
    folder: Path,
    module: Trained,
    optimizers: list[torch.optim.Optimizer],
    state: dict[str, Any],
    keep: int,
    shards: Path | None = None,
) -> Path:
    """Writes the checkpoint of a finished iteration, with `state` in its checkpoint.json, and removes all but the
    newest `keep`, the newest that a good grid has proved, and the best by mean score; returns its path. Of sharded
    networks the files lie in `shards`, written by all workers."""
    path = folder / f"step-{state['iteration']:07d}"
    with storage.whole_folder(path) as unfinished:
        if shards:
            for file in shards.iterdir():
                file.rename(unfinished / file.name)
            shards.rmdir()
        else:
            write(unfinished, module, optimizers)
        files = {file.name: storage.digest(file) for file in sorted(unfinished.iterdir())}
        storage.write_json(unfinished / checkpoints.STATE, state | {"files": files})
    kept = {checkpoints.best(folder), checkpoints.until(folder, state["proved"])}
    for old in sorted(set(sorted(folder.glob("step-*"))[:-keep]) - kept):
        shutil.rmtree(old)
    return path


def write(folder: Path, module: Trained, optimizers: list[torch.optim.Optimizer]) -> None:
    """Writes whole networks and the states of their optimisers into a folder."""
    for name in module.networks:
        weights = {k: v.detach().cpu().contiguous() for k, v in getattr(module, name).state_dict().items()}
        with writing(folder / f"{name}.safetensors") as file:
            save_file(weights, file)
    with writing(folder / "optimisers.pt") as file:
        torch.save([o.state_dict() for o in optimizers], file)


def restore(path: Path, module: Trained, optimizers: list[torch.optim.Optimizer]) -> int:
    """Loads weights and optimisers of a checkpoint, every key matched, into networks that are whole or sharded; returns
    its iteration."""
    if any(path.glob(checkpoints.SHARDS)):
        sharding.read(path, module, optimizers)
        return int(checkpoints.state(path)["iteration"])
    for name in module.networks:
        network, weights = getattr(module, name), load_file(path / f"{name}.safetensors")
        like = network.state_dict()
        network.load_state_dict({k: sharding.spread(v, like.get(k, v)) for k, v in weights.items()}, strict=True)
    states: list[dict[str, Any]] = torch.load(path / "optimisers.pt", map_location="cpu", weights_only=True)
    for optimizer, saved in zip(optimizers, states, strict=True):
        weights_of = [weight for group in optimizer.param_groups for weight in group["params"]]
        for index, moments in saved["state"].items():
            saved["state"][index] = {
                k: sharding.spread(v, weights_of[index]) if v.dim() else v for k, v in moments.items()
            }
        optimizer.load_state_dict(saved)
    return int(checkpoints.state(path)["iteration"])


class Checkpoints(L.Callback):
    """Restores at the start, saves every `checkpoint_every` iterations, with every grid and at the end, by rank 0, with
    the curves so far. While a fault is running nothing is saved; what was due then is saved as soon as the run is well.
    A file STOP in the folder asks for a checkpoint now and the end of the run."""

    def __init__(self, folder: Path, source: Path | None, key: str, params: Distill, health: Health) -> None:
        self.folder, self.source, self.key, self.params, self.health = folder, source, key, params, health
        self.due = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before anything else that the workers do together: all raise RuntimeError, after which Ray starts them again,
        where one sees another checkpoint than the first. Weights would be the first's, moments and draws its own. Once
        they agree the broken ones that were passed over are removed, and all compute with as many threads as the first,
        whose number is saved, unless SANA_SPRINT_THREADS says otherwise."""
        own = self.source.name if self.source else "none"
        first = trainer.strategy.broadcast(own)
        if not trainer.strategy.reduce_boolean_decision(own == first):
            others = f"{first} to the first" if own != first else "another to another"
            raise RuntimeError(
                f"{self.folder}: the newest whole checkpoint is {own} to worker {trainer.global_rank} and {others}; "
                "all workers must see one folder, and at once: put it on storage that they share"
            )
        threads.go_on_with(trainer.strategy.broadcast(torch.get_num_threads()))
        if trainer.is_global_zero:
            checkpoints.forget_after(self.folder, checkpoints.number(self.source) if self.source else 0)

    def on_train_start(self, trainer: L.Trainer, pl_module: Distillation) -> None:  # type: ignore[override]
        """Loads the checkpoint to continue from."""
        if self.source:
            restore(self.source, pl_module, trainer.optimizers)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: Distillation, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves after the turn that ends an iteration. A disk that is full costs this checkpoint, not the run, unless
        it is the last: the one before is whole."""
        iteration, turn = divmod(batch["step"] + 1, self.params.turns)
        if turn:
            return
        stop = trainer.strategy.broadcast((self.folder / checkpoints.STOP).exists())
        last = iteration == self.params.iterations
        self.due |= (
            stop or checkpoints.draws_grid(self.params, iteration) or iteration % self.params.checkpoint_every == 0
        )
        if self.due and (last or self.health.well):
            self.due = False
            with needed() if last else callbacks.despite_full_disk(f"checkpoint of iteration {iteration}"):
                self.save(trainer, pl_module, iteration)
            trainer.strategy.barrier()
        if stop and not last:
            if self.due and trainer.is_global_zero:
                before = checkpoints.until(self.folder, iteration)
                sys.stderr.write(
                    f"distill: a fault is running, so iteration {iteration} is not saved; the run will go on from "
                    f"{before.name if before else 'its start'}\n"
                )
            raise checkpoints.Stopped(f"iteration {iteration}")

    def save(self, trainer: L.Trainer, module: Distillation, iteration: int) -> None:
        """Writes curves and checkpoint, by rank 0 or, of sharded networks, by all."""
        shards = sharding.write(self.folder, module, trainer.optimizers) if sharding.is_sharded(module) else None
        if not trainer.is_global_zero:
            return
        for curves in (c for c in trainer.callbacks if isinstance(c, callbacks.Curves)):  # type: ignore[attr-defined]
            curves.save()
        drawn = checkpoints.draws_grid(self.params, iteration)  # else the scores are those of an earlier student
        scores = {n: v for n, v in self.health.values.items() if drawn and n.startswith("score/")}
        state = {"iteration": iteration, "attempt": module.attempt, "key": self.key, "scores": scores}
        state |= {"best_score": self.health.best, "proved": self.health.proved}
        state |= {"workers": module.share.world, "threads": torch.get_num_threads(), "code": checkpoints.code()}
        save(self.folder, module, trainer.optimizers, state, self.params.keep_checkpoints, shards)
