"""The training loop of the small judges: AdamW with warm-up and cosine decay, deterministic from a seed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from sana_sprint.config import Optimizer


def rate(step: int, steps: int, optimizer: Optimizer) -> float:
    """Returns the factor on the learning rate: linear warm-up, flat, cosine to 0 over the last
    `decay_share`.
    """
    decay_steps = max(round(optimizer.decay_share * steps), 1)
    left = (steps - step) / decay_steps
    decay = 1.0 if left >= 1 else 0.5 - 0.5 * math.cos(math.pi * left)
    return min(1.0, (step + 1) / max(optimizer.warmup_steps, 1)) * decay


def fit(
    model: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    rows: int,
    steps: int,
    batch: int,
    optimizer: Optimizer,
    seed: int,
    name: str,
) -> float:
    """Trains a model in place and returns its last loss. `loss_of` maps row numbers (batch,) to a scalar;
    rows are drawn from shuffled passes over the data. Raises ValueError when the loss is no longer finite.
    """
    random = torch.Generator().manual_seed(seed)
    adamw = torch.optim.AdamW(
        model.parameters(),
        lr=optimizer.lr,
        betas=(optimizer.betas[0], optimizer.betas[1]),
        weight_decay=optimizer.weight_decay,
    )
    model.train()
    order = torch.empty(0, dtype=torch.long)
    value = math.nan
    for step in tqdm(range(steps), desc=name, mininterval=3):
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(rows, generator=random)])
        chosen, order = order[:batch], order[batch:]
        for group in adamw.param_groups:
            group["lr"] = optimizer.lr * rate(step, steps, optimizer)
        loss = loss_of(chosen)
        adamw.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), optimizer.grad_norm_max)
        adamw.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ValueError(f"judge.model.optimizer.lr: the {name} diverged at step {step}; choose a smaller rate")
    model.eval()
    return value
