"""Picture grids while a student trains: the same captions and noise at 1, 2 and 4 steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from PIL import Image

from sana_sprint.maths import sample

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import AutoencoderDC

    from sana_sprint.config import Sampling
    from sana_sprint.models.networks import Text
    from sana_sprint.training.callbacks import Recorder
    from sana_sprint.training.distill import Distillation

STEPS = ("1", "2", "4")


def pixels(vae: AutoencoderDC, x_0: torch.Tensor) -> torch.Tensor:
    """Returns pictures (B, H, W, 3) uint8 of latents of unit scale."""
    decoded = vae.decode(x_0 / vae.config.scaling_factor, return_dict=False)[0].float()
    return ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def tiled(rows: list[torch.Tensor]) -> Image.Image:
    """Returns one picture with a row of tiles per tensor (B, H, W, 3) uint8."""
    return Image.fromarray(torch.cat([torch.cat(list(row), dim=1) for row in rows]).numpy())


class Grids(L.Callback):
    """Draws the averaged student every `every` iterations into `folder` and the recorder. A row per step count."""

    def __init__(
        self,
        vae: AutoencoderDC,
        text: Text,
        shape: tuple[int, ...],
        sampling: Sampling,
        sigma_d: float,
        every: int,
        folder: Path,
        recorder: Recorder | None,
    ) -> None:
        self.vae, self.text, self.sampling, self.sigma_d = vae, text, sampling, sigma_d
        self.every, self.folder, self.recorder = every, folder, recorder
        generator = torch.Generator().manual_seed(0)
        self.noises = [torch.randn(len(text), *shape, generator=generator) for _ in range(int(STEPS[-1]))]

    @torch.no_grad()
    def draw(self, module: Distillation) -> Image.Image:
        """Returns the grid of a module's averaged student."""
        text, device = self.text.to(module.device), module.device
        F = module.averaged.velocity(text, torch.full((len(text),), self.sampling.guidance, device=device))
        rows = []
        for steps in STEPS:
            noises = [n.to(device) for n in self.noises[: int(steps)]]
            x_0 = sample.consistency(F, noises, self.sampling.times[steps], self.sigma_d)
            rows.append(pixels(self.vae.to(device), x_0))
        return tiled(rows)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draws after the iterations that are due."""
        iteration, odd = divmod(batch["step"] + 1, 2)
        if odd or iteration % self.every or not trainer.is_global_zero:
            return
        grid = self.draw(pl_module)  # type: ignore[arg-type]
        self.folder.mkdir(parents=True, exist_ok=True)
        grid.save(self.folder / f"iteration-{iteration:06d}.png")
        if self.recorder:
            self.recorder.picture(grid, "grids/1_2_4_steps", iteration)
