"""Flow trainings that a kill does not send back to the start: their state is kept as they train, and one of the same
key goes on from it, to the same weights as if nothing had been.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from sana_sprint import storage
from sana_sprint.models import threads
from sana_sprint.training import callbacks, checkpoints, saving

if TYPE_CHECKING:
    from sana_sprint.config import Kept as Params

ROOT = Path("data/checkpoints")


class Kept(L.Callback):
    """Restores at the start, and saves every `checkpoint_every` steps and when the process is asked to end (SIGTERM),
    with the curves so far. What is trained is the caller's in the end, who calls `end` once it lies where it belongs.
    One process at a time has the folder, in which nothing but the newest whole checkpoint and those before it stay."""

    def __init__(self, folder: Path, key: str, params: Params) -> None:
        self.folder, self.key, self.params = folder, key, params
        self.held = ExitStack()
        self.held.enter_context(checkpoints.owned(folder))
        checkpoints.sweep(folder)
        self.source = checkpoints.newest(folder, key)
        self.start = self.done = int(checkpoints.state(self.source)["iteration"]) if self.source else 0
        checkpoints.forget_after(folder, self.start)

    @property
    def curves(self) -> Path:
        """Where the curves so far lie: DVC empties their place in data/metrics when a stage begins."""
        return self.folder / "curves.json"

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Loads the checkpoint to continue from. Lightning calls this even where no step is left to train."""
        if self.source:
            checkpoints.go_on_from(self.source)
            threads.go_on_with(checkpoints.state(self.source)["threads"])
            saving.restore(self.source, pl_module, trainer.optimizers)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Saves what the steps before this one have made: a module ends its step after its callbacks have."""
        self.done = batch["step"]
        if self.done > self.start and self.done % self.params.checkpoint_every == 0:
            with callbacks.despite_full_disk(f"checkpoint of step {self.done}"):
                self.save(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the step."""
        self.done = batch["step"] + 1

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Saves when the process is asked to end, which Lightning tells once a step is whole, and leaves the folder to
        the next process."""
        if isinstance(exception, SIGTERMException) and self.done > self.start:
            sys.stderr.write("asked to stop: writing a checkpoint first\n")
            with callbacks.despite_full_disk(f"checkpoint of step {self.done}"):
                self.save(trainer, pl_module)
        self.held.close()

    def save(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Writes curves and checkpoint."""
        for curves in (c for c in trainer.callbacks if isinstance(c, callbacks.Curves)):  # type: ignore[attr-defined]
            curves.save()
        state = {"iteration": self.done, "key": self.key, "proved": 0}
        state |= {"threads": torch.get_num_threads(), "code": checkpoints.code()}
        saving.save(self.folder, module, trainer.optimizers, state, self.params.keep_checkpoints)

    def end(self, curves: Path) -> None:
        """Writes the curves of the finished training where they belong, and removes its checkpoints."""
        storage.write_json(curves, storage.read_json(self.curves))
        checkpoints.clear(self.folder)
        self.held.close()


def of(name: str, inputs: list[Path], params: Params) -> Kept:
    """Returns where a training of these inputs and params keeps its state, and what it kept there before."""
    key = storage.digest_of([[storage.digest(path) for path in inputs], name, params.made_of()])
    return Kept(ROOT / name, key, params)
