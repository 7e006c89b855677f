"""The continuous-time consistency loss sCM (arXiv:2410.11081, section 4 and algorithm 1) as SANA-Sprint
distils it (arXiv:2503.09641, section 3.2 and algorithm 2). Notation of trigflow.py; F^- is the student with its
gradient stopped, dxdt the guided velocity of the teacher, r the tangent warm-up in [0, 1].

    g = -cos^2(t) (sigma_d F^- - dxdt) - r (cos(t) sin(t) x_t + sigma_d cos(t) sin(t) dF^-/dt)
"""

from torch import Tensor

from sana_sprint.maths import forward
from sana_sprint.maths.trigflow import Velocity, over


def derivative(F: Velocity, x: Tensor, t_B: Tensor, dxdt: Tensor, sigma_d: float) -> tuple[Tensor, Tensor]:
    """Returns (F, cos(t) sin(t) dF/dt) along dx/dt at (x_t / sigma_d, t), by one forward-mode pass. The factor is
    carried in the tangents, where it keeps them bounded (arXiv:2410.11081, section 4.1)."""
    weight_B = t_B.cos() * t_B.sin()
    primals = (x / sigma_d, t_B)
    tangents = (over(weight_B, x) * dxdt / sigma_d, weight_B)
    return forward.jvp(F, primals, tangents)


def tangent(
    x: Tensor, F_minus: Tensor, cos_sin_dF: Tensor, dxdt: Tensor, t_B: Tensor, sigma_d: float, r: float
) -> Tensor:
    """Returns g of the module header (arXiv:2410.11081, algorithm 1). SANA-Sprint's code and FastGen scale the
    derivative by r as here; rCM does not. All agree at r = 1."""
    t = over(t_B, x)
    toward_teacher = t.cos() ** 2 * (sigma_d * F_minus - dxdt)
    return -toward_teacher - r * (t.cos() * t.sin() * x + sigma_d * cos_sin_dF)


def normalize(g: Tensor, c: float, size_invariant: bool = False) -> Tensor:
    """Returns g / (|g| + c) with the norm taken per sample (arXiv:2410.11081, section 4.1). Size-invariant, the norm
    is |g| / sqrt(D), the root mean square over a sample's D numbers, which c then meets at every resolution."""
    norm_B = g.flatten(1).norm(dim=1)
    if size_invariant:
        norm_B = norm_B / g[0].numel() ** 0.5
    return g / (over(norm_B, g) + c)


def loss(F: Tensor, F_minus: Tensor, g: Tensor, logvar_B: Tensor, t_B: Tensor, sigma_d: float) -> Tensor:
    """Returns mean[ w exp(-logvar) (F - F^- - g)^2 + logvar ] with w = 1 / (sigma_d tan t). The prior weight
    stands in the released code of SANA-Sprint and in sCM's proposal, not in the paper's algorithm 2."""
    weight_B = 1 / (sigma_d * t_B.tan())
    error_B = (F - F_minus - g).square().flatten(1).mean(1)
    return (weight_B * (-logvar_B).exp() * error_B + logvar_B).mean()


def warmup(step: int, warmup_steps: int) -> float:
    """Returns r = min(1, step / warmup_steps) (arXiv:2410.11081, section 4.1)."""
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0
