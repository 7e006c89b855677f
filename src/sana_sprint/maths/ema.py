"""Exponential moving average of weights: the copy that is saved and evaluated."""

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def update(average: Iterable[Tensor], current: Iterable[Tensor], decay: float, step: int) -> None:
    """Moves `average` towards `current` in place: a <- d a + (1 - d) w with
    d = min(decay, (1 + step) / (10 + step)), the warm-up of TensorFlow's ExponentialMovingAverage (num_updates)."""
    d = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average), list(current), 1 - d)
