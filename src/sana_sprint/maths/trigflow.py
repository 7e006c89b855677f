"""TrigFlow, the trigonometric interpolant of sCM (arXiv:2410.11081), and its exact bridge to rectified flow
(SANA-Sprint, arXiv:2503.09641, section 3.1, proposition 3.1).

    x_t   = cos(t) x_0 + sin(t) z                 t in [0, pi/2] radians, z ~ N(0, sigma_d^2 I)
    dx/dt = cos(t) z - sin(t) x_0                 = sigma_d F(x_t / sigma_d, t) for a perfect F
    x_0   = cos(t) x_t - sin(t) sigma_d F         the clean latents that F implies
    s     = sin(t) / (sin(t) + cos(t))            flow time of equal signal-to-noise ratio

Latents are (B, C, H, W), x_0 scaled to standard deviation sigma_d. A name that ends in _B is (B,). A network is
a function (latents, time_B) -> velocity; text and guidance are closed over by the caller.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]


def over(t_B: Tensor, x: Tensor) -> Tensor:
    """Returns t_B (B,) shaped (B, 1, 1, ...): (over(t_B, x) * x)[b] = t_B[b] * x[b]."""
    return t_B.reshape(-1, *[1] * (x.ndim - 1))


def interpolate(x_0: Tensor, z: Tensor, t_B: Tensor) -> Tensor:
    """Returns x_t = cos(t) x_0 + sin(t) z (arXiv:2410.11081, section 3)."""
    t = over(t_B, x_0)
    return t.cos() * x_0 + t.sin() * z


def velocity(x_0: Tensor, z: Tensor, t_B: Tensor) -> Tensor:
    """Returns dx_t/dt = cos(t) z - sin(t) x_0 (arXiv:2410.11081, section 3)."""
    t = over(t_B, x_0)
    return t.cos() * z - t.sin() * x_0


def denoise(x: Tensor, F: Tensor, t_B: Tensor, sigma_d: float) -> Tensor:
    """Returns the consistency function f = cos(t) x_t - sin(t) sigma_d F (arXiv:2503.09641, section 2.2)."""
    t = over(t_B, x)
    return t.cos() * x - t.sin() * sigma_d * F


def flow_time(t_B: Tensor) -> Tensor:
    """Returns s = sin t / (sin t + cos t) in [0, 1] (arXiv:2503.09641, proposition 3.1)."""
    return t_B.sin() / (t_B.sin() + t_B.cos())


def trig_time(s_B: Tensor) -> Tensor:
    """Returns t = arctan(s / (1 - s)) in [0, pi/2], the inverse of `flow_time`."""
    return torch.atan2(s_B, 1 - s_B)


def from_flow(v: Velocity) -> Velocity:
    """Returns F(x_t / sigma_d, t) of a rectified-flow network v(x_s, s) = E[z - x_0 | x_s] with unit-variance
    data and noise; no weight changes (arXiv:2503.09641, proposition 3.1)."""

    def F(x: Tensor, t_B: Tensor) -> Tensor:
        s_B = flow_time(t_B)
        s = over(s_B, x)
        scale = (s**2 + (1 - s) ** 2).sqrt()
        x_s = scale * x
        return ((1 - 2 * s) * x_s + scale**2 * v(x_s, s_B)) / scale

    return F


def to_flow(F: Velocity) -> Velocity:
    """Returns v(x_s, s) of a TrigFlow network F(x_t / sigma_d, t), the inverse of `from_flow`
    (arXiv:2503.09641, proposition 3.1)."""

    def v(x_s: Tensor, s_B: Tensor) -> Tensor:
        s = over(s_B, x_s)
        scale = (s**2 + (1 - s) ** 2).sqrt()
        return (F(x_s / scale, trig_time(s_B)) * scale - (1 - 2 * s) * x_s) / scale**2

    return v
