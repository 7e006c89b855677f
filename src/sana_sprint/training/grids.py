"""Picture grids while a student trains: the same captions and noise at 1, 2 and 4 steps."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from PIL import Image

from sana_sprint.maths import sample
from sana_sprint.training import callbacks, checkpoints, health

if TYPE_CHECKING:
    from diffusers import AutoencoderDC

    from sana_sprint.models.networks import Text
    from sana_sprint.training.distill import Distillation
    from sana_sprint.training.job import Job

STEPS = ("1", "2", "4")
SHOWN, COLUMNS = 12, 4


def pixels(vae: AutoencoderDC, x_0: torch.Tensor) -> torch.Tensor:
    """Returns pictures (B, H, W, 3) uint8 of latents of unit scale."""
    decoded = vae.decode(x_0 / vae.config.scaling_factor, return_dict=False)[0].float()
    return ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def tiled(rows: list[torch.Tensor]) -> Image.Image:
    """Returns one picture with a row of tiles per tensor (B, H, W, 3) uint8."""
    return Image.fromarray(torch.cat([torch.cat(list(row), dim=1) for row in rows]).numpy())


def sheet(pictures: torch.Tensor) -> Image.Image:
    """Returns pictures (B, H, W, 3) uint8 as one of four columns; missing ones are white."""
    blank = pictures.new_full((-len(pictures) % COLUMNS, *pictures.shape[1:]), 255)
    return tiled(list(torch.cat([pictures, blank]).split(COLUMNS)))


class Grids(L.Callback):
    """Draws the averaged student at the start, every `grid_every` iterations and at the end into the job's folder and
    recorder, a row or sheet per step count; logs how much its one-step latents differ, and the job's quick score."""

    def __init__(self, job: Job, vae: AutoencoderDC, text: Text, shape: tuple[int, ...], watch: health.Health) -> None:
        self.job, self.vae, self.text, self.watch = job, vae, text, watch
        generator = torch.Generator().manual_seed(0)
        self.noises = [torch.randn(len(text), *shape, generator=generator) for _ in range(int(STEPS[-1]))]

    @torch.no_grad()
    def latents(self, module: Distillation) -> list[torch.Tensor]:
        """Returns the averaged student's latents (B, C, H, W) of unit scale per step count."""
        text, device, sampling = self.text.to(module.device), module.device, self.job.sampling
        F = module.averaged.velocity(text, torch.full((len(text),), sampling.guidance, device=device))
        noises = [n.to(device) for n in self.noises]
        return [sample.consistency(F, noises[: int(k)], sampling.times[k], self.job.sigma_d) for k in STEPS]

    @torch.no_grad()
    def draw(self, latents: list[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the pictures (B, H, W, 3) uint8 of latents per step count."""
        vae = self.vae.to(latents[0].device)
        drawn = [torch.cat([pixels(vae, one) for one in x_0.split(1)]) for x_0 in latents]  # 1024 px want GBs each
        self.vae.cpu()
        return drawn

    def on_train_start(self, trainer: L.Trainer, pl_module: Distillation) -> None:  # type: ignore[override]
        """Scores and draws the undistilled student. A run that goes on, whose weights are restored after this, draws it
        too: in MLflow it belongs to another command, whose series begin with it as well."""
        if not self.watch.resumed:
            self.watch.begin(self.scores(trainer, pl_module, 0))
        latents = self.latents(pl_module)
        if trainer.is_global_zero and all(x_0.isfinite().all() for x_0 in latents):
            self.write(self.draw(latents), 0)

    def scores(self, trainer: L.Trainer, module: Distillation, iteration: int) -> dict[str, float]:
        """Returns the averaged student's quick scores by metric, {} without a scorer, and says them."""
        found = self.job.scorer(module.averaged.transformer) if self.job.scorer else {}
        if found and trainer.is_global_zero:
            words = "  ".join(f"{steps} {score:.3f}" for steps, score in found.items())
            sys.stdout.write(f"distill {self.job.size}  iteration {iteration}  quick score by steps: {words}\n")
        return {f"score/{steps}_step": score for steps, score in found.items()}

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: Distillation, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draws after the iterations that are due. All workers compute, so that all log the same; rank 0 writes."""
        iteration, turn = divmod(batch["step"] + 1, self.job.params.turns)
        if turn or not checkpoints.draws_grid(self.job.params, iteration):
            return
        latents = self.latents(pl_module)
        finite = all(x_0.isfinite().all() for x_0 in latents)
        if len(self.text) > 1 or not finite:
            pl_module.log(health.DIVERSITY, latents[0].std(0).mean() if finite else torch.tensor(torch.nan))
        if not finite:
            return  # no picture; health reads the diversity and stops the run
        pl_module.log_dict(self.scores(trainer, pl_module, iteration))
        if trainer.is_global_zero:
            self.write(self.draw(latents), iteration)

    def write(self, pictures: list[torch.Tensor], iteration: int) -> None:
        """Writes and records the grid of pictures (B, H, W, 3) uint8 per step count, and a sheet of each in a series of
        its own."""
        with callbacks.despite_full_disk(f"grid of iteration {iteration}"):
            grid, name = tiled(pictures), f"iteration-{iteration:06d}"
            self.job.grids.mkdir(parents=True, exist_ok=True)
            grid.save(self.job.grids / f"{name}.png")
            if self.job.recorder:
                self.job.recorder.picture(grid, f"grids/{name}")
                for steps, drawn in zip(STEPS, pictures, strict=True):
                    self.job.recorder.picture(sheet(drawn), f"distill_{self.job.size}/{steps}_step", iteration)
