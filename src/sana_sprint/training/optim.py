"""AdamW and its schedule from a params section."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from sana_sprint.config import Optimizer


def lr_scale(step: int, steps: int, warmup_steps: int, decay_share: float) -> float:
    """Returns the factor on the learning rate at a step: linear warm-up, flat, then a linear decay to zero over the
    last `decay_share` of `steps`."""
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    decay_steps = decay_share * steps
    return warm * min(1.0, (steps - step) / decay_steps) if decay_steps else warm


def adamw(weights: Iterable[nn.Parameter], params: Optimizer) -> torch.optim.AdamW:
    """Returns AdamW over the weights."""
    b1, b2 = params.betas
    return torch.optim.AdamW(list(weights), lr=params.lr, betas=(b1, b2), weight_decay=params.weight_decay, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, params: Optimizer, step: int, steps: int) -> float:
    """Sets and returns the learning rate of a step. The schedule is a function of the step, so nothing of it needs
    saving."""
    lr = params.lr * lr_scale(step, steps, params.warmup_steps, params.decay_share)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr
