"""Distillation as a thin Lightning module: sCM + LADD (SANA-Sprint, arXiv:2503.09641, section 3 and algorithm 2).

Even steps train the student, odd steps the heads; one iteration is one of each. Latents here are of scale sigma_d.
All randomness is a function of (seed, step), all schedules of the student's own step count.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sana_sprint.maths import ema, ladd, scm, times, trigflow
from sana_sprint.models import heads, networks
from sana_sprint.training import draws, optim

if TYPE_CHECKING:
    from diffusers import SanaTransformer2DModel

    from sana_sprint.config import Distill
    from sana_sprint.models.networks import Text


class Distillation(L.LightningModule):
    """Student, its EMA `averaged`, and heads; the frozen teacher is no part of the weights."""

    def __init__(
        self,
        student: SanaTransformer2DModel,
        teacher: SanaTransformer2DModel,
        null: Text,
        params: Distill,
        sigma_d: float,
        share: draws.Share,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.params, self.sigma_d, self.share, self.null = params, sigma_d, share, null
        torch.manual_seed(params.seed)
        self.student = networks.Student(student)
        self.averaged = copy.deepcopy(self.student).requires_grad_(False).eval()
        width = teacher.config.num_attention_heads * teacher.config.attention_head_dim
        self.heads = heads.Heads(width, params.heads.blocks, params.heads.virtual_batch)
        self._teacher = (teacher.requires_grad_(False).eval(),)  # in a tuple: not a part of this module's weights
        for network in (student, self.averaged.transformer, teacher):
            networks.time_in_float32(network)

    def on_fit_start(self) -> None:
        """Moves what Lightning does not know of to the device."""
        self._teacher[0].to(self.device)
        self.null = self.null.to(self.device)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Returns AdamW of the student and AdamW of the heads."""
        return [
            optim.adamw(self.student.parameters(), self.params.student),
            optim.adamw(self.heads.parameters(), self.params.heads.optimizer),
        ]

    def training_step(self, batch: dict[str, Any], index: int) -> None:
        """One student step on even steps, one heads step on odd ones."""
        iteration, odd = divmod(batch["step"], 2)
        turn, losses_of, params = [
            ("student", self.student_losses, self.params.student),
            ("heads", self.heads_losses, self.params.heads.optimizer),
        ][odd]
        optimizer = self.optimizers()[odd]
        optim.set_lr(optimizer, params, iteration, self.params.iterations)
        numbers = draws.Draws(self.params.seed, batch["step"], self.params.global_batch, self.share, self.device)
        self.toggle_optimizer(optimizer)
        losses, watched = losses_of(batch["x_0"] * self.sigma_d, draws.text_of(batch), numbers, iteration)
        optimizer.zero_grad()
        self.manual_backward(sum(losses.values()))
        weights = getattr(self, turn).parameters()
        norm = torch.nn.utils.clip_grad_norm_(weights, params.grad_norm_max)
        optimizer.step()
        self.untoggle_optimizer(optimizer)
        if turn == "student":
            ema.update(self.averaged.parameters(), self.student.parameters(), self.params.ema_decay, iteration)
        watched |= losses | {"grad_norm": norm}
        self.log_dict({f"{turn}/{name}": value.detach() for name, value in watched.items()})

    def student_losses(
        self, x_0: Tensor, text: Text, numbers: draws.Draws, iteration: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the weighted sCM and LADD losses, and what else to watch."""
        p, sigma_d = self.params, self.sigma_d
        t_B, guidance_B = self.times(numbers, p.time), numbers.choice(p.guidance)
        x = trigflow.interpolate(x_0, sigma_d * numbers.normal(*x_0.shape[1:]), t_B)
        F_theta = self.student.velocity(text, guidance_B)
        with torch.no_grad():
            teacher = networks.guided_teacher(self._teacher[0], text, self.null, guidance_B)
            dxdt = sigma_d * teacher(x / sigma_d, t_B).float()
            with sdpa_kernel(SDPBackend.MATH):
                F_minus, cos_sin_dF = scm.derivative(F_theta, x, t_B, dxdt, sigma_d)
            r = scm.warmup(iteration, p.tangent_warmup_iterations)
            g = scm.tangent(x, F_minus.float(), cos_sin_dF.float(), dxdt, t_B, sigma_d, r)
        F = F_theta(x / sigma_d, t_B).float()
        logvar_B = self.student.log_variance(t_B, guidance_B)
        normal = scm.normalize(g, p.tangent_norm_c)
        losses = {"scm": p.scm_weight * scm.loss(F, F.detach(), normal, logvar_B, t_B, sigma_d)}
        if p.ladd_weight:
            fake = self.generate(x_0, text, guidance_B, numbers)
            losses["ladd"] = p.ladd_weight * ladd.student_loss(self.logits(fake, text, numbers))
        return losses, {"tangent_norm": g.flatten(1).norm(dim=1).mean(), "logvar": logvar_B.mean()}

    def heads_losses(
        self, x_0: Tensor, text: Text, numbers: draws.Draws, iteration: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the hinge loss of the heads, and what else to watch. Misaligned pairs join the fakes with their
        own captions only, so that real latents keep theirs."""
        with torch.no_grad():
            fake = self.generate(x_0, text, numbers.choice(self.params.guidance), numbers)
        real_logits, fake_logits = self.logits(x_0, text, numbers), self.logits(fake, text, numbers)
        watched = {"real": real_logits.mean(), "fake": fake_logits.mean()}
        if self.params.heads.misaligned_pairs and len(x_0) > 1:
            wrong = self.logits(ladd.misaligned(x_0), text, numbers)
            watched["misaligned"] = wrong.mean()
            fake_logits = torch.cat([fake_logits, wrong])
        watched["accuracy"] = ladd.accuracy(real_logits, fake_logits)
        return {"hinge": ladd.heads_loss(real_logits, fake_logits)}, watched

    def generate(self, x_0: Tensor, text: Text, guidance_B: Tensor, numbers: draws.Draws) -> Tensor:
        """Returns the student's x_0 in one step from fresh noise and time, max-time weighted."""
        t_B = times.with_max_time(self.times(numbers, self.params.time), numbers.uniform(), self.params.max_time_prob)
        x = trigflow.interpolate(x_0, self.sigma_d * numbers.normal(*x_0.shape[1:]), t_B)
        F = self.student.velocity(text, guidance_B)(x / self.sigma_d, t_B)
        return trigflow.denoise(x, F.float(), t_B, self.sigma_d)

    def logits(self, x_0: Tensor, text: Text, numbers: draws.Draws) -> Tensor:
        """Returns the heads' logits of clean latents, noised to a time of the heads' own."""
        t_B = self.times(numbers, self.params.heads.time)
        x = trigflow.interpolate(x_0, self.sigma_d * numbers.normal(*x_0.shape[1:]), t_B)
        seen = heads.features(self._teacher[0], self.heads.blocks, x / self.sigma_d, t_B, text)
        return self.heads(seen).float()

    def times(self, numbers: draws.Draws, sampler: Any) -> Tensor:
        """Returns TrigFlow times (B,) of a log-normal sampler."""
        return times.log_normal(numbers.normal(), sampler.mean, sampler.std, self.sigma_d)
