"""Training the foundation's DC-AE: first whole, with noise on the latents so that they become smooth, then the
decoder alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sana_sprint.training import draws, optim

if TYPE_CHECKING:
    from diffusers import AutoencoderDC

    from sana_sprint.config import Autoencoder


class Pictures(Dataset):
    """Item k is the batch of step k, (B, 3, H, W) in [-1, 1], from pixels (N, H, W, 3) uint8."""

    def __init__(self, pixels: Tensor, batch: int, seed: int, steps: int) -> None:
        self.pixels, self.batch, self.seed, self.steps = pixels, batch, seed, steps

    def __len__(self) -> int:
        """Returns the number of steps."""
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        """Returns the batch of a step."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        rows = torch.randint(len(self.pixels), (self.batch,), generator=generator)
        return {"step": step, "pictures": as_input(self.pixels[rows])}


def as_input(pixels: Tensor) -> Tensor:
    """Returns (B, 3, H, W) in [-1, 1] from (B, H, W, 3) uint8."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the horizontal and vertical differences of pictures."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


class AutoencoderTraining(L.LightningModule):
    """L1 + gradient + square error; latents are pulled to zero mean and unit deviation per channel."""

    def __init__(self, vae: AutoencoderDC, params: Autoencoder, seed: int) -> None:
        super().__init__()
        self.vae, self.params, self.seed = vae, params, seed

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns AdamW over encoder and decoder."""
        return optim.adamw(self.vae.parameters(), self.params.optimizer)

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        """Returns the loss of one step."""
        p, x, step = self.params, batch["pictures"], batch["step"]
        optim.set_lr(self.optimizers(), p.optimizer, step, p.steps + p.decoder_steps)
        whole = step < p.steps
        with torch.set_grad_enabled(whole):
            latents = self.vae.encode(x).latent
        noise = draws.Draws(self.seed + 1, step, len(x), draws.Share(0, 1), x.device).normal(*latents.shape[1:])
        out = self.vae.decode(latents + p.latent_noise * (1.0 if whole else 0.5) * noise).sample
        error = out - x
        slope = sum(e.abs().mean() for e in edges(error))
        loss = error.abs().mean() + p.gradient_weight * slope + p.square_weight * error.square().mean()
        if whole:
            mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
            loss = loss + p.regulariser_weight * (mean.square().mean() + (std - 1).square().mean())
        self.log_dict(
            {"autoencoder_loss": loss.detach(), "psnr_db": -10 * (error.detach() / 2).square().mean().log10()}
        )
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips the gradient."""
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), self.params.optimizer.grad_norm_max)
