"""The scheme that the benchmark compares with: one iteration of SANA-Sprint written plainly after the paper
(arXiv:2503.09641, algorithm 2) and its public scripts, part after part as they stand there.

Pictures and captions are encoded in every step, the teacher sees them with and without caption in two passes, the
tangent is a pass of its own before the pass with gradients, LADD draws a second sample, and the discriminator's
teacher and heads run once each for real, fake and misaligned latents. The numbers drawn, and their order, are those of
training/distill.py, whose gradients these must be.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from shapes import Networks, Pairs, encode
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import relu

from sana_sprint.training import draws, optim

if TYPE_CHECKING:
    from diffusers import SanaTransformer2DModel

    from sana_sprint.config import LogNormal
    from sana_sprint.models.networks import Text
    from sana_sprint.training.distill import Distillation


def wide(t: Tensor) -> Tensor:
    """Returns times (B,) as (B, 1, 1, 1)."""
    return t[:, None, None, None]


class Reference:
    """Trains the student and heads of `ours`, with optimizers of its own."""

    def __init__(self, networks: Networks, ours: Distillation) -> None:
        self.networks, self.student, self.heads = networks, ours.student, ours.heads
        self.params, self.sigma_d, self.null, self.share = ours.params, ours.sigma_d, ours.null, ours.share
        self.optimized = ours.optimized
        self.optimizers = {name: optim.adamw(getattr(self, name).parameters(), p) for name, p in ours.optimized.items()}

    def step(self, batch: Pairs, step: int) -> None:
        """One step of the student where `step` is even, of the heads where it is odd."""
        iteration, turn = divmod(step, 2)
        name = "heads" if turn else "student"
        self.student.requires_grad_(not turn)
        self.heads.requires_grad_(bool(turn))
        x_0, text = encode(self.networks, batch)
        numbers = draws.Draws(self.params.seed, step, len(x_0), self.share, x_0.device)
        loss = (self.heads_loss if turn else self.student_loss)(x_0 * self.sigma_d, text, numbers)
        self.optimizers[name].zero_grad()
        self.backward(loss)
        self.update(name, iteration)

    def backward(self, loss: Tensor) -> None:
        """The backward pass of a step."""
        loss.backward()

    def update(self, name: str, iteration: int) -> None:
        """Clips the gradient and steps the optimizer."""
        params = self.optimized[name]
        optim.set_lr(self.optimizers[name], params, iteration, self.params.iterations)
        torch.nn.utils.clip_grad_norm_(getattr(self, name).parameters(), params.grad_norm_max)
        self.optimizers[name].step()

    def student_loss(self, x_0: Tensor, text: Text, numbers: draws.Draws) -> Tensor:
        """Returns the sCM loss on noised latents plus the adversarial loss on a second sample."""
        p, sigma_d = self.params, self.sigma_d
        t, guidance = self.times(numbers, p.time), numbers.choice(p.guidance)
        x = wide(t.cos()) * x_0 + wide(t.sin()) * sigma_d * numbers.normal(*x_0.shape[1:])
        with torch.no_grad():
            v_text = self.F(self.networks.teacher, x / sigma_d, t, text)
            v_null = self.F(self.networks.teacher, x / sigma_d, t, self.null_of(text))
            dxdt = sigma_d * (v_null + wide(guidance) * (v_text - v_null)).float()
        F_minus, dF = self.derivative(x, t, dxdt, text, guidance)
        g = -wide(t.cos() ** 2) * (sigma_d * F_minus - dxdt) - (wide(t.cos() * t.sin()) * x + sigma_d * dF)
        g = g / (g.flatten(1).norm(dim=1)[:, None, None, None] + p.tangent_norm_c)

        F = self.F(self.student.transformer, x / sigma_d, t, text, guidance).float()
        logvar = self.student.log_variance(t, guidance)
        error = (F - F.detach() - g).square().flatten(1).mean(1)
        scm = (error / (sigma_d * t.tan()) / logvar.exp() + logvar).mean()

        fake = self.generate(x_0, text, guidance, numbers)
        return p.scm_weight * scm - p.ladd_weight * self.judge(fake, text, numbers).mean()

    def heads_loss(self, x_0: Tensor, text: Text, numbers: draws.Draws) -> Tensor:
        """Returns the hinge loss of real latents against the student's and the misaligned ones."""
        guidance = numbers.choice(self.params.guidance)
        with torch.no_grad():
            fake = self.generate(x_0, text, guidance, numbers)
        real, fake, misaligned = (self.judge(y, text, numbers) for y in (x_0, fake, x_0.roll(1, 0)))
        return (relu(1 - real).mean() + relu(1 + torch.cat([fake, misaligned])).mean()) / 2

    def derivative(self, x: Tensor, t: Tensor, dxdt: Tensor, text: Text, guidance: Tensor) -> tuple[Tensor, Tensor]:
        """Returns F and cos(t) sin(t) dF/dt along the teacher's path, in float32, without gradient."""
        weight = t.cos() * t.sin()

        def F(y: Tensor, s: Tensor) -> Tensor:
            return self.F(self.student.transformer, y, s, text, guidance)

        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), torch.autocast(x.device.type, enabled=False):
            return torch.func.jvp(F, (x / self.sigma_d, t), (wide(weight) * dxdt / self.sigma_d, weight))

    def generate(self, x_0: Tensor, text: Text, guidance: Tensor, numbers: draws.Draws) -> Tensor:
        """Returns the student's sample from fresh noise, at pi/2 with probability `max_time_prob`."""
        t = self.times(numbers, self.params.time)
        t = torch.where(numbers.uniform() < self.params.max_time_prob, math.pi / 2, t)
        x = wide(t.cos()) * x_0 + wide(t.sin()) * self.sigma_d * numbers.normal(*x_0.shape[1:])
        F = self.F(self.student.transformer, x / self.sigma_d, t, text, guidance).float()
        return wide(t.cos()) * x - wide(t.sin()) * self.sigma_d * F

    def judge(self, x_0: Tensor, text: Text, numbers: draws.Draws) -> Tensor:
        """Returns the heads' logits of latents noised to times of their own."""
        t = self.times(numbers, self.params.heads.time)
        x = wide(t.cos()) * x_0 + wide(t.sin()) * self.sigma_d * numbers.normal(*x_0.shape[1:])
        seen: list[Tensor] = []
        blocks = self.networks.teacher.transformer_blocks
        hooks = [blocks[i].register_forward_hook(lambda _m, _i, output: seen.append(output)) for i in self.heads.blocks]
        self.F(self.networks.teacher, x / self.sigma_d, t, text)
        for hook in hooks:
            hook.remove()
        return self.heads(seen).float()

    def F(
        self, network: SanaTransformer2DModel, x: Tensor, t: Tensor, text: Text, guidance: Tensor | None = None
    ) -> Tensor:
        """Returns a network's TrigFlow velocity (arXiv:2503.09641, proposition 3.1)."""
        s = wide(t.sin() / (t.sin() + t.cos()))
        scale = (s**2 + (1 - s) ** 2).sqrt()
        given = {} if guidance is None else {"guidance": guidance * network.config.guidance_embeds_scale}
        v = network(
            scale * x,
            timestep=s.flatten(),
            encoder_hidden_states=text.embeds,
            encoder_attention_mask=text.mask,
            return_dict=False,
            **given,
        )[0]
        return ((1 - 2 * s) * scale * x + (1 - 2 * s + 2 * s**2) * v) / scale

    def null_of(self, text: Text) -> Text:
        """Returns the empty caption for every row."""
        return type(text)(self.null.embeds.expand_as(text.embeds), self.null.mask.expand_as(text.mask))

    def times(self, numbers: draws.Draws, sampler: LogNormal) -> Tensor:
        """Returns t = arctan(exp(tau) / sigma_d)."""
        return ((sampler.mean + sampler.std * numbers.normal()).exp() / self.sigma_d).atan()
