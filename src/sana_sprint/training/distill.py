"""Distillation as a thin Lightning module: sCM + LADD (SANA-Sprint, arXiv:2503.09641, section 3 and algorithm 2), and
beside them, where the recipe says so, distribution matching by an online fake score (DMD, arXiv:2311.18828).

An iteration is one step of the student and then `turns - 1` steps of its critics: the heads, the fake score or both.
Latents here are of scale sigma_d. All randomness is a function of (seed, step), all schedules of the iteration.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize

from sana_sprint.maths import difference, dmd, ema, ladd, scm, times, trigflow
from sana_sprint.models import heads, networks
from sana_sprint.training import draws, optim, sharding
from sana_sprint.training.batches import Seen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diffusers import SanaTransformer2DModel

    from sana_sprint.config import Distill, LogNormal, Optimizer
    from sana_sprint.models.networks import Text

Losses = tuple[dict[str, Tensor], dict[str, Tensor]]  # what is minimised, what is watched


class Distillation(L.LightningModule):
    """Student, its EMA `averaged`, and the critics of the recipe; the frozen teacher is no part of the weights."""

    def __init__(
        self,
        student: SanaTransformer2DModel,
        teacher: SanaTransformer2DModel,
        null: Text,
        params: Distill,
        sigma_d: float,
        share: draws.Share,
        attempt: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.params, self.sigma_d, self.share, self.null = params, sigma_d, share, null
        self.attempt = attempt
        torch.manual_seed(params.seed)
        self.student = networks.Student(student)
        self.averaged = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.optimized: dict[str, Optimizer] = {"student": params.student}
        if "ladd" in params.terms:
            width = teacher.config.num_attention_heads * teacher.config.attention_head_dim
            self.heads = heads.Heads(width, params.heads.blocks, params.heads.virtual_batch, params.heads.norm)
            self.optimized["heads"] = params.heads.optimizer
        if "dmd" in params.terms:
            self.fake_score = networks.Student(copy.deepcopy(student))
            self.optimized["fake_score"] = params.dmd.optimizer
        self._teacher = (teacher.requires_grad_(False).eval(),)  # in a tuple: not a part of this module's weights
        for name in ("student", "averaged", "fake_score"):
            if hasattr(self, name):
                networks.keep_float32(getattr(self, name).transformer)
        networks.keep_float32(teacher)

    @property
    def networks(self) -> tuple[str, ...]:
        """The names of the networks that a checkpoint holds."""
        return (*self.optimized, "averaged")

    @property
    def teacher(self) -> SanaTransformer2DModel:
        """The frozen teacher."""
        return self._teacher[0]

    @property
    def passing(self) -> list[SanaTransformer2DModel]:
        """The transformers that a step passes through."""
        return [self.teacher, *(getattr(self, n).transformer for n in ("student", "fake_score") if hasattr(self, n))]

    def configure_model(self) -> None:
        """Spreads the networks over the workers where the strategy brings a device mesh."""
        if self.device_mesh is not None:
            sharding.shard(self, self.device_mesh["data_parallel"])

    def on_fit_start(self) -> None:
        """Moves what Lightning does not know of to the device."""
        self.teacher.to(self.device)
        self.null = self.null.to(self.device)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Returns an AdamW per trained network, the student's first."""
        return [optim.adamw(getattr(self, name).parameters(), params) for name, params in self.optimized.items()]

    def training_step(self, batch: dict[str, Any], index: int) -> None:
        """One step of the student in turn 0 of an iteration, of the critics in the others."""
        p = self.params
        iteration, turn = divmod(batch["step"], p.turns)
        moved = p.critics(turn) if turn else ["student"]
        seed = draws.seed(p.seed, self.attempt)
        numbers = draws.Draws(seed, batch["step"], p.global_batch, self.share, self.device)
        x_0, misaligned = batch["x_0"] * self.sigma_d, batch["misaligned"] * self.sigma_d
        for name in self.optimized:
            getattr(self, name).requires_grad_(name in moved)
        for name in moved:
            self.optimizer(name).zero_grad()
        values = self.gradient(Seen(x_0, misaligned, draws.text_of(batch), numbers, iteration, turn))
        for name in moved:
            values |= self.update(name, iteration)
        if not turn:
            ema.update(self.averaged.parameters(), self.student.parameters(), p.ema_decay, iteration)
        self.log_dict(values)

    def gradient(self, seen: Seen) -> dict[str, Tensor]:
        """Adds up the gradient of a step over its passes; returns the mean of their losses and what is watched."""
        losses_of = self.critics_losses if seen.turn else self.student_losses
        found, parts = [], seen.parts()
        for index, part in enumerate(parts):
            with self.power_iterations(index == 0):
                losses, watched = losses_of(part)
            self.manual_backward(sum(losses.values()) / len(parts))
            found.append({name: value.detach() for name, value in (losses | watched).items()})
        return {name: torch.stack([values[name] for values in found]).mean() for name in found[0]}

    @contextmanager
    def power_iterations(self, first: bool) -> Iterator[None]:
        """Within the block the heads' spectral norm iterates in the first pass of a step alone: all passes meet the
        same weights."""
        critic = getattr(self, "heads", None)
        was = critic is not None and critic.training
        if critic is not None:
            critic.train(was and first)
        try:
            yield
        finally:
            if critic is not None:
                critic.train(was)

    def optimizer(self, name: str) -> Any:
        """Returns the optimizer of a network."""
        every = self.optimizers()
        return every[list(self.optimized).index(name)] if isinstance(every, list) else every

    def update(self, name: str, iteration: int) -> dict[str, Tensor]:
        """Clips a network's gradient, steps its optimizer, and returns the norm before clipping and the rate."""
        params, optimizer = self.optimized[name], self.optimizer(name)
        lr = optim.set_lr(optimizer, params, iteration, self.params.iterations)
        norm = torch.nn.utils.clip_grad_norm_(getattr(self, name).parameters(), params.grad_norm_max)
        optimizer.step()
        return {f"{name}/grad_norm": sharding.whole(norm), f"{name}/lr": torch.tensor(lr)}

    def student_losses(self, seen: Seen) -> Losses:
        """Returns the weighted losses of the recipe's terms: sCM on noised latents, LADD and DMD on a sample."""
        p = self.params
        losses: dict[str, Tensor] = {}
        watched: dict[str, Tensor] = {}
        t_B, guidance_B = self.times(seen.numbers, p.time), seen.numbers.choice(p.guidance)
        if "scm" in p.terms:
            losses["student/scm"], watched = self.scm_loss(seen, t_B, guidance_B)
        if p.terms == {"scm"}:
            return losses, watched
        fake = self.generate(seen, guidance_B)
        watched["student/sample_std"] = self.deviation(fake)
        if "ladd" in p.terms:
            logits = self.logits([fake], seen)[0]
            losses["student/ladd"] = p.ladd_weight * ladd.student_loss(logits)
        if "dmd" in p.terms:
            losses["student/dmd"] = p.dmd.weight * dmd.loss(fake, self.score_gap(fake, seen, guidance_B))
        return losses, watched

    def scm_loss(self, seen: Seen, t_B: Tensor, guidance_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted sCM loss (arXiv:2503.09641, algorithm 2), and what to watch of it."""
        p, sigma_d = self.params, self.sigma_d
        x = trigflow.interpolate(seen.x_0, sigma_d * seen.numbers.normal(*seen.x_0.shape[1:]), t_B)
        F_theta = self.student.velocity(seen.text, guidance_B)
        with torch.no_grad():
            teacher = networks.guided_teacher(self.teacher, seen.text, self.null, guidance_B)
            dxdt = sigma_d * teacher(x / sigma_d, t_B).float()
            F_minus, cos_sin_dF = self.derivative(F_theta, x, t_B, dxdt)
            r = scm.warmup(seen.iteration, p.tangent_warmup_iterations)
            g = scm.tangent(x, F_minus.float(), cos_sin_dF.float(), dxdt, t_B, sigma_d, r)
        F = F_theta(x / sigma_d, t_B).float()
        logvar_B = self.student.log_variance(t_B, guidance_B) * float(p.log_variance)
        normal = scm.normalize(g, p.tangent_norm_c, p.size_invariant_norm)
        loss = p.scm_weight * scm.loss(F, F.detach(), normal, logvar_B, t_B, sigma_d)
        norm = g.flatten(1).norm(dim=1).mean()
        return loss, {"student/tangent_norm": norm, "student/logvar": logvar_B.mean(), "student/r": torch.tensor(r)}

    def derivative(self, F: trigflow.Velocity, x: Tensor, t_B: Tensor, dxdt: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (F, cos sin dF/dt) along the teacher's path, in float32 unless the params say otherwise."""
        p = self.params
        with (
            sdpa_kernel(SDPBackend.MATH),
            full_convolutions(),
            torch.autocast(
                x.device.type, enabled=p.tangent_precision == "network" and torch.is_autocast_enabled(x.device.type)
            ),
        ):
            if p.derivative == "exact":
                return scm.derivative(F, x, t_B, dxdt, self.sigma_d)
            by = {"semi": difference.semi, "difference": difference.central}[p.derivative]
            return by(F, x, t_B, dxdt, self.sigma_d, p.derivative_step)

    def critics_losses(self, seen: Seen) -> Losses:
        """Returns the losses of the critics whose turn it is, on one sample of the student."""
        moved = self.params.critics(seen.turn)
        losses: dict[str, Tensor] = {}
        guidance_B = seen.numbers.choice(self.params.guidance)
        with torch.no_grad():
            fake = self.generate(seen, guidance_B)
        watched = {"student/sample_std": self.deviation(fake)}  # of a broken student, not of its critics
        if "heads" in moved:
            losses, of_heads = self.heads_losses(seen, fake)
            watched |= of_heads
        if "fake_score" in moved:
            losses["fake_score/loss"] = self.fake_score_loss(seen, fake, guidance_B)
        return losses, watched

    def heads_losses(self, seen: Seen, fake: Tensor) -> Losses:
        """Returns the hinge loss of the heads, and what else to watch. Misaligned pairs join the fakes with their
        own captions only, so that real latents keep theirs; the accuracy is that against the student, because pictures
        that share a caption make misaligned pairs that no head can tell."""
        pairs = self.params.heads.misaligned_pairs and len(seen.misaligned)
        judged = [seen.x_0, fake, *([seen.misaligned] if pairs else [])]
        real, *fakes = self.logits(judged, seen)
        names = ("heads/fake", "heads/misaligned")
        watched = {"heads/real": real.mean()} | {n: x.mean() for n, x in zip(names, fakes, strict=False)}
        watched["heads/accuracy"] = ladd.accuracy(real, fakes[0])
        return {"heads/hinge": ladd.heads_loss(real, torch.cat(fakes))}, watched

    def fake_score_loss(self, seen: Seen, fake: Tensor, guidance_B: Tensor) -> Tensor:
        """Returns E|F - dx_t/dt / sigma_d|^2 of the fake score on the student's samples (arXiv:2311.18828, eq. 6)."""
        t_B = self.times(seen.numbers, self.params.dmd.time)
        z = self.sigma_d * seen.numbers.normal(*fake.shape[1:])
        x = trigflow.interpolate(fake, z, t_B)
        F = self.fake_score.velocity(seen.text, guidance_B)(x / self.sigma_d, t_B).float()
        return (F - trigflow.velocity(fake, z, t_B) / self.sigma_d).square().mean()

    @torch.no_grad()
    def score_gap(self, x_0: Tensor, seen: Seen, guidance_B: Tensor) -> Tensor:
        """Returns the normalised gap between what fake score and guided teacher see in the noised sample."""
        t_B = self.times(seen.numbers, self.params.dmd.time)
        x = trigflow.interpolate(x_0, self.sigma_d * seen.numbers.normal(*x_0.shape[1:]), t_B)
        teacher = networks.guided_teacher(self.teacher, seen.text, self.null, guidance_B)
        student = self.fake_score.velocity(seen.text, guidance_B)
        real, fake = (
            trigflow.denoise(x, F(x / self.sigma_d, t_B).float(), t_B, self.sigma_d) for F in (teacher, student)
        )
        return dmd.gap(x_0, real, fake)

    def generate(self, seen: Seen, guidance_B: Tensor) -> Tensor:
        """Returns the student's x_0 in one step from fresh noise and time, max-time weighted."""
        p, numbers = self.params, seen.numbers
        t_B = times.with_max_time(self.times(numbers, p.time), numbers.uniform(), p.max_time_prob)
        x = trigflow.interpolate(seen.x_0, self.sigma_d * numbers.normal(*seen.x_0.shape[1:]), t_B)
        F = self.student.velocity(seen.text, guidance_B)(x / self.sigma_d, t_B)
        return trigflow.denoise(x, F.float(), t_B, self.sigma_d)

    def logits(self, judged: list[Tensor], seen: Seen) -> list[Tensor]:
        """Returns the heads' logits of clean latents, each set noised to times of its own, by one feature pass of
        the frozen teacher over all of them. All sets meet the same spectrally normalised weights: one power
        iteration a step."""
        numbers, sigma_d = seen.numbers, self.sigma_d
        t, x = [], []
        for x_0 in judged:
            t.append(self.times(numbers, self.params.heads.time))
            x.append(trigflow.interpolate(x_0, sigma_d * numbers.normal(*x_0.shape[1:]), t[-1]) / sigma_d)
        text = seen.text.repeat(len(judged))
        features = heads.features(self.teacher, self.heads.blocks, torch.cat(x), torch.cat(t), text)
        parts = zip(*(f.split(len(seen.x_0)) for f in features), strict=True)
        with parametrize.cached():
            return [self.heads(list(part)).float() for part in parts]

    def deviation(self, x_0: Tensor) -> Tensor:
        """Returns the deviation within latents, that of data being 1."""
        return x_0.flatten(1).std(1).mean() / self.sigma_d

    def times(self, numbers: draws.Draws, sampler: LogNormal) -> Tensor:
        """Returns TrigFlow times (B,) of a log-normal sampler."""
        return times.log_normal(numbers.normal(), sampler.mean, sampler.std, self.sigma_d)


@contextmanager
def full_convolutions() -> Iterator[None]:
    """Within the block convolutions of float32 are float32 on a GPU too, where torch lets cuDNN round their inputs to
    TensorFloat-32: finite differences divide that rounding by their step."""
    was = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = was
