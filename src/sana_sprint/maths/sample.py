"""Samplers: the student's 1-4 steps and the teacher's ODE. Both take a network F(x_t / sigma_d, t) -> velocity,
noise of unit variance (B, C, H, W) and a falling list of times that ends in 0, and return clean latents of unit
variance."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from sana_sprint.maths import flow, trigflow
from sana_sprint.maths.trigflow import Velocity


def consistency(F: Velocity, noises: Sequence[Tensor], times: Sequence[float], sigma_d: float) -> Tensor:
    """Returns x_0 / sigma_d by multistep consistency sampling: denoise, add fresh noise, repeat (sCM,
    arXiv:2410.11081, algorithm 2; times of arXiv:2503.09641, table 7). One noise per step. Raises ValueError
    when their number does not fit the times."""
    if len(noises) != len(times) - 1:
        raise ValueError(f"{len(times) - 1} steps need as many noises, got {len(noises)}")
    x_0 = None
    for noise, t in zip(noises, times, strict=False):
        x_0 = consistency_step(F, x_0, noise, t, sigma_d)
    assert x_0 is not None
    return x_0 / sigma_d


def consistency_step(F: Velocity, x_0: Tensor | None, noise: Tensor, time: float, sigma_d: float) -> Tensor:
    """Returns the x_0 that a step at time t makes of the one before: that of x_t = cos t x_0 + sin t sigma_d z, or of
    x_t = sigma_d z where there is none before. All of scale sigma_d but the noise z."""
    t = torch.tensor(time, dtype=noise.dtype, device=noise.device)
    x = noise * sigma_d if x_0 is None else t.cos() * x_0 + t.sin() * sigma_d * noise
    t_B = t.expand(len(x))
    return trigflow.denoise(x, F(x / sigma_d, t_B), t_B, sigma_d)


def ode(F: Velocity, noise: Tensor, times: Sequence[float], sigma_d: float) -> Tensor:
    """Returns x_0 / sigma_d by first-order steps of the TrigFlow ODE: the exact rotation
    x_s = cos(t - s) x_t - sin(t - s) sigma_d F, DDIM in TrigFlow (arXiv:2410.11081, appendix B.2)."""
    x = noise * sigma_d
    t = torch.tensor(times, dtype=noise.dtype, device=noise.device)
    for now, after in itertools.pairwise(t):
        F_x = F(x / sigma_d, now.expand(len(x)))
        x = (now - after).cos() * x - (now - after).sin() * sigma_d * F_x
    return x / sigma_d


def flow_ode(v: Velocity, noise: Tensor, times: Sequence[float]) -> Tensor:
    """Returns x_0 by Euler steps of the rectified-flow ODE; times are flow times s (arXiv:2209.03003, eq. 2)."""
    x = noise
    s = torch.tensor(times, dtype=noise.dtype, device=noise.device)
    for now, after in itertools.pairwise(s):
        x = x + (after - now) * v(x, now.expand(len(x)))
    return x


def flow_times(num_steps: int, shift: float) -> list[float]:
    """Returns num_steps + 1 falling flow times from 1 to 0, shifted to high noise (arXiv:2403.03206, eq. 23)."""
    return flow.shifted(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64), shift).tolist()
