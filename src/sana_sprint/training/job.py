"""A distillation to be done: where its inputs lie and its outputs go. attempts.py trains it; nothing here imports
Lightning, so that the process which only starts workers need not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sana_sprint.training import checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusers import SanaTransformer2DModel

    from sana_sprint.config import Distill, Sampling
    from sana_sprint.training import callbacks

    Scorer = Callable[[SanaTransformer2DModel], dict[str, float]]


BLOCKS = "SANA_SPRINT_WATCH_BLOCKS"  # 1: the gradient norm of every block of the student too


@dataclass(frozen=True)
class Job:
    """What a worker needs: absolute folders, params, where to record, and what scores a student on the way."""

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
    recorder: callbacks.Recorder | None
    scorer: Scorer | None = None

    @property
    def final(self) -> Path:
        """The checkpoint that ends the training."""
        return self.checkpoints / f"step-{self.params.iterations:07d}"

    def finished(self) -> bool:
        """Whether the final checkpoint of this very job is there, whole."""
        return checkpoints.newest(self.checkpoints, self.key) == self.final


def averaged(final: Path, trigflow: Path) -> SanaTransformer2DModel:
    """Returns the student's transformer with the EMA weights of the final checkpoint, every key matched."""
    from safetensors.torch import load_file

    from sana_sprint.models import bundle

    transformer = bundle.load_transformer(trigflow)
    prefix = "transformer."
    if any(final.glob(checkpoints.SHARDS)):
        from sana_sprint.training import sharding

        sharding.read_network(final, f"averaged.{prefix}", transformer)
        return transformer.eval()
    weights = load_file(final / "averaged.safetensors")
    transformer.load_state_dict(
        {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}, strict=True
    )
    return transformer.eval()
