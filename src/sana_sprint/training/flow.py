"""Rectified-flow training: the foundation's base model, the teacher fine-tune, and healing
of a pruned student against the guided teacher."""

from __future__ import annotations

import copy
import signal
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sana_sprint import process
from sana_sprint.maths import ema, flow, times
from sana_sprint.maths.trigflow import over
from sana_sprint.models import networks
from sana_sprint.models.networks import Text
from sana_sprint.training import callbacks, draws, optim

if TYPE_CHECKING:
    from diffusers import SanaTransformer2DModel
    from torch.utils.data import Dataset

    from sana_sprint.config import Flow, Prune
    from sana_sprint.models.prune import Cut
    from sana_sprint.training.kept import Kept


class FlowTraining(L.LightningModule):
    """Trains a transformer on v = z - x_0 with caption dropout; `averaged` holds its EMA."""

    networks = ("transformer", "averaged")  # what a checkpoint holds

    def __init__(self, transformer: SanaTransformer2DModel, null: Text, params: Flow, seed: int) -> None:
        super().__init__()
        self.automatic_optimization = False  # the gradient of a step may come from several passes
        self.transformer, self.null, self.params, self.seed = transformer, null, params, seed
        self.averaged = copy.deepcopy(transformer).requires_grad_(False).eval()
        networks.keep_float32(transformer)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns AdamW over the trained weights."""
        return optim.adamw(self.transformer.parameters(), self.params.optimizer)

    def training_step(self, batch: dict[str, Any], index: int) -> None:
        """One step of the optimiser, in passes of SANA_SPRINT_MICRO_BATCH rows where that is set."""
        x_0, text, step = batch["x_0"], draws.text_of(batch), batch["step"]
        optimizer, count = self.optimizers(), draws.passes_of(len(x_0))
        optim.set_lr(optimizer, self.params.optimizer, step, self.params.steps)
        numbers = draws.Draws(self.seed, step, len(x_0), draws.Share(0, 1), x_0.device)
        optimizer.zero_grad()
        found = []
        for x, some, own in zip(x_0.chunk(count), text.chunk(count), numbers.parts(count), strict=True):
            s_B = times.logit_normal(own.normal(), self.params.time_mean, self.params.time_std)
            z = own.normal(*x.shape[1:])
            loss = self.loss(some, x, z, s_B, own)
            self.manual_backward(loss / count)
            found.append(loss.detach())
        self.log("loss", torch.stack(found).mean())
        optimizer.step()

    def loss(self, text: Text, x_0: Tensor, z: Tensor, s_B: Tensor, numbers: draws.Draws) -> Tensor:
        """Returns the flow loss with dropped captions."""
        text = self.text(text, numbers.uniform() < self.params.caption_dropout)
        v = networks.flow_velocity(self.transformer, text)
        return flow.loss(v(flow.interpolate(x_0, z, s_B), s_B).float(), x_0, z)

    def text(self, text: Text, dropped_B: Tensor) -> Text:
        """Returns the captions, the dropped ones replaced by the empty caption and its mask."""
        null = self.null.to(dropped_B.device)
        return Text(
            torch.where(over(dropped_B, text.embeds), null.embeds, text.embeds),
            torch.where(dropped_B[:, None], null.mask, text.mask),
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips the gradient and logs its norm."""
        weights = [p for p in self.transformer.parameters() if p.grad is not None]
        self.log("grad_norm", nn.utils.clip_grad_norm_(weights, self.params.optimizer.grad_norm_max))

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], index: int) -> None:
        """Moves the average."""
        ema.update(self.averaged.parameters(), self.transformer.parameters(), self.params.ema_decay, batch["step"])


class Healing(FlowTraining):
    """Heals a pruned student: a share of samples learns the data's flow with guidance 1, the rest the guided
    teacher's velocity at a guidance scale of its own; beside that, block outputs may be drawn to the teacher's."""

    def __init__(self, cut: Cut, teacher: SanaTransformer2DModel, null: Text, params: Prune) -> None:
        super().__init__(cut.network, null, params.healing, params.seed)
        self.prune, self.channels = params, cut.channels
        # The last block has a guided velocity to give, which the teacher's features of one caption are not.
        self.follows = cut.follows[:-1] if params.feature_weight else []
        self._teacher = (teacher.requires_grad_(False).eval(),)  # in a tuple: not a part of this module's weights
        networks.keep_float32(teacher)

    @property
    def teacher(self) -> SanaTransformer2DModel:
        """The frozen teacher."""
        return self._teacher[0]

    def on_fit_start(self) -> None:
        """Moves the frozen teacher to where the student is."""
        self.teacher.to(self.device)

    def loss(self, text: Text, x_0: Tensor, z: Tensor, s_B: Tensor, numbers: draws.Draws) -> Tensor:
        """Returns the mean squared error against each sample's target, and the features' part of it."""
        guidance_B = numbers.choice(self.prune.guidance)
        on_data_B = numbers.uniform() < self.prune.flow_share
        x_s = flow.interpolate(x_0, z, s_B)
        with torch.no_grad(), networks.block_outputs(self.teacher, self.follows) as wanted:
            target = networks.guided_velocity(self.teacher, text, self.null.to(x_0.device), guidance_B)(x_s, s_B)
            target = torch.where(on_data_B[:, None, None, None], z - x_0, target)
        guidance_B = torch.where(on_data_B, torch.ones_like(guidance_B), guidance_B)
        with networks.block_outputs(self.transformer, range(len(self.follows))) as given:
            v = networks.flow_velocity(self.transformer, text, guidance_B)(x_s, s_B)
        loss = (v.float() - target.float()).square().mean()
        if not self.follows:
            return loss
        of_caption = [wanted[block].chunk(2)[1][..., self.channels.to(x_s.device)] for block in self.follows]
        features = flow.feature_loss([given[i] for i in range(len(given))], of_caption)
        self.log("features", features.detach())
        return loss + self.prune.feature_weight * features


def fit(
    module: L.LightningModule,
    data: Dataset,
    steps: int,
    extra: list[L.Callback],
    name: str,
    precision: str = "32-true",
    kept: Kept | None = None,
) -> None:
    """Runs `steps` optimiser steps over data[0], data[1], ... on one device, with progress and a non-finite stop; with
    `kept` from where its checkpoint is. Raises SystemExit after SIGTERM or Ctrl-C, once the step is whole."""
    callbacks.quiet()
    start = kept.start if kept else 0
    trainer = L.Trainer(
        max_steps=steps - start,
        precision=precision,  # type: ignore[arg-type]
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            callbacks.Progress(name, steps, start),
            callbacks.StopOnNonFinite(),
            *extra,
            *([kept] if kept else []),
        ],
    )
    try:
        with process.interrupt_asks_to_end():
            trainer.fit(module, DataLoader(data, batch_size=None, sampler=range(start, steps)))
    except SIGTERMException:
        raise SystemExit(128 + signal.SIGTERM) from None
