"""Rectified flow, the teacher's interpolant (SANA, arXiv:2410.10629, section 2.3; arXiv:2209.03003).

x_s = (1 - s) x_0 + s z,   v = z - x_0,   s in [0, 1], x_0 and z of unit variance
"""

from collections.abc import Sequence

from torch import Tensor

from sana_sprint.maths.trigflow import over


def interpolate(x_0: Tensor, z: Tensor, s_B: Tensor) -> Tensor:
    """Returns x_s = (1 - s) x_0 + s z."""
    s = over(s_B, x_0)
    return (1 - s) * x_0 + s * z


def loss(v: Tensor, x_0: Tensor, z: Tensor) -> Tensor:
    """Returns the mean squared error of a predicted velocity against z - x_0 (arXiv:2209.03003, eq. 1)."""
    return (v - (z - x_0)).square().mean()


def feature_loss(features: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Returns the mean over blocks of |h - h_T|^2 / |h_T|^2 for block outputs h of a student and h_T of its teacher,
    (B, N, D) each: the feature term of a pruned network's distillation (BK-SDM, arXiv:2305.15798, section 3.2), here
    relative to the teacher's own size, since a residual stream grows from block to block."""
    pairs = zip(features, targets, strict=True)
    terms = [(h - h_T).float().square().mean() / h_T.float().square().mean() for h, h_T in pairs]
    return sum(terms[1:], terms[0]) / len(terms)


def guided(v_uncond: Tensor, v_cond: Tensor, scale_B: Tensor) -> Tensor:
    """Returns the classifier-free guided velocity v_u + s (v_c - v_u) (arXiv:2207.12598, eq. 6)."""
    return v_uncond + over(scale_B, v_cond) * (v_cond - v_uncond)


def shifted(s: Tensor, shift: float) -> Tensor:
    """Returns the time s moved to higher noise: shift s / (1 + (shift - 1) s) (SD3, arXiv:2403.03206, eq. 23)."""
    return shift * s / (1 + (shift - 1) * s)
