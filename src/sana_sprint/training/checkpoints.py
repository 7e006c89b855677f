"""Resumable checkpoints of a distillation: whole or absent, digested, keyed by what they belong to.

A checkpoint is a folder step-<iteration> with safetensors weights, optimisers.pt (read with weights_only=True) and
checkpoint.json, which carries the digest of each file and the key of the run. A run continues only from a checkpoint
of its own key, so changed params, data or weights start from zero.
"""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from safetensors.torch import load_file, save_file

from sana_sprint import storage

if TYPE_CHECKING:
    from pathlib import Path

    from sana_sprint.training.distill import Distillation

STATE = "checkpoint.json"
NETWORKS = ("student", "averaged", "heads")


def save(
    folder: Path,
    module: Distillation,
    optimizers: list[torch.optim.Optimizer],
    iteration: int,
    key: str,
    keep: int,
) -> Path:
    """Writes the checkpoint of a finished iteration and removes all but the newest `keep`; returns its path."""
    path = folder / f"step-{iteration:07d}"
    with storage.whole_folder(path) as unfinished:
        for name in NETWORKS:
            weights = {k: v.detach().cpu().contiguous() for k, v in getattr(module, name).state_dict().items()}
            save_file(weights, unfinished / f"{name}.safetensors")
        torch.save([o.state_dict() for o in optimizers], unfinished / "optimisers.pt")
        files = {file.name: storage.digest(file) for file in sorted(unfinished.iterdir())}
        storage.write_json(unfinished / STATE, {"iteration": iteration, "key": key, "files": files})
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return path


def newest(folder: Path, key: str) -> Path | None:
    """Returns the newest whole checkpoint of this key, or None. Broken ones are named and skipped; those of another
    key belong to other params or inputs and are removed."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        fault = broken(path)
        if fault:
            sys.stderr.write(f"warning: {path}: {fault}; skipped, trying the one before\n")
        elif storage.read_json(path / STATE)["key"] != key:
            shutil.rmtree(path)
        else:
            return path
    return None


def broken(path: Path) -> str:
    """Returns what is wrong with a checkpoint, or ''."""
    try:
        files = storage.read_json(path / STATE)["files"]
    except (ValueError, KeyError):
        return "half-written checkpoint (no readable checkpoint.json)"
    for name, digest in files.items():
        if not (path / name).is_file() or storage.digest(path / name) != digest:
            return f"half-written checkpoint ({name} does not match its digest)"
    return ""


def restore(path: Path, module: Distillation, optimizers: list[torch.optim.Optimizer]) -> int:
    """Loads weights and optimisers of a checkpoint, every key matched; returns its iteration."""
    for name in NETWORKS:
        getattr(module, name).load_state_dict(load_file(path / f"{name}.safetensors"), strict=True)
    states: list[dict[str, Any]] = torch.load(path / "optimisers.pt", weights_only=True)
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(state)
    return int(storage.read_json(path / STATE)["iteration"])


class Checkpoints(L.Callback):
    """Restores at the start, saves every `every` iterations and at the end, by rank 0, with the curves so far."""

    def __init__(self, folder: Path, source: Path | None, key: str, every: int, keep: int, steps: int) -> None:
        self.folder, self.source, self.key = folder, source, key
        self.every, self.keep, self.steps = every, keep, steps

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Loads the checkpoint to continue from."""
        if self.source:
            restore(self.source, pl_module, trainer.optimizers)  # type: ignore[arg-type]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves after the heads step that ends an iteration."""
        done = batch["step"] + 1
        iteration, odd = divmod(done, 2)
        if odd or (iteration % self.every and done < self.steps):
            return
        if trainer.is_global_zero:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if hasattr(callback, "save") and callback is not self:
                    callback.save()
            save(self.folder, pl_module, trainer.optimizers, iteration, self.key, self.keep)  # type: ignore[arg-type]
        trainer.strategy.barrier()
