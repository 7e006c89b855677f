"""The derivative of sCM by finite differences: along time alone, or along the whole path, for networks or machines on
which forward mode is unstable or does not work. Notation of trigflow.py; both take and return what
`scm.derivative` does."""

from torch import Tensor

from sana_sprint.maths import forward
from sana_sprint.maths.trigflow import Velocity, over


def semi(F: Velocity, x: Tensor, t_B: Tensor, dxdt: Tensor, sigma_d: float, step: float) -> tuple[Tensor, Tensor]:
    """Returns the same as `scm.derivative` with the part along t by a central difference of `step` radians, exact along
    x (semi-continuous time, arXiv:2510.08431): the curvature of the time embedding stays out of the forward-mode
    pass. dF/dt ~ (F(t + h) - F(t - h)) / 2h."""
    weight_B = t_B.cos() * t_B.sin()
    along_x = over(weight_B, x) * dxdt / sigma_d
    F_minus, in_x = forward.jvp(lambda y: F(y, t_B), (x / sigma_d,), (along_x,))
    in_t = (F(x / sigma_d, t_B + step) - F(x / sigma_d, t_B - step)) / (2 * step)
    return F_minus, in_x + over(weight_B, x) * in_t


def central(F: Velocity, x: Tensor, t_B: Tensor, dxdt: Tensor, sigma_d: float, step: float) -> tuple[Tensor, Tensor]:
    """Returns the same as `scm.derivative` by a central difference along the path, for networks that forward mode does
    not reach: cos sin dF/dt ~ (F(x + h u, t + h w) - F(x - h u, t - h w)) / 2h with u = w dxdt / sigma_d."""
    weight_B = t_B.cos() * t_B.sin()
    u = over(weight_B, x) * dxdt / sigma_d
    ahead = F(x / sigma_d + step * u, t_B + step * weight_B)
    behind = F(x / sigma_d - step * u, t_B - step * weight_B)
    return F(x / sigma_d, t_B), (ahead - behind) / (2 * step)
