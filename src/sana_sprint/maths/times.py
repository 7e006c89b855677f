"""Samplers of time. Every draw takes standard normal or uniform numbers from the caller, so that randomness is
a function of (seed, step, sample) and never of a device or a worker."""

import math

import torch
from torch import Tensor


def log_normal(normal_B: Tensor, mean: float, std: float, sigma_d: float) -> Tensor:
    """Returns t = arctan(exp(tau) / sigma_d), tau ~ N(mean, std^2), in (0, pi/2) (arXiv:2410.11081, algorithm 1)."""
    return torch.atan((mean + std * normal_B).exp() / sigma_d)


def logit_normal(normal_B: Tensor, mean: float, std: float) -> Tensor:
    """Returns s = sigmoid(mean + std n) in (0, 1) (SD3, arXiv:2403.03206, eq. 19)."""
    return torch.sigmoid(mean + std * normal_B)


def with_max_time(t_B: Tensor, uniform_B: Tensor, prob: float) -> Tensor:
    """Returns t with a share `prob` replaced by pi/2, pure noise: the max-time weighting of SANA-Sprint
    (arXiv:2503.09641, section 3.3). The probability picks, the time is always pi/2."""
    return torch.where(uniform_B < prob, torch.full_like(t_B, math.pi / 2), t_B)
