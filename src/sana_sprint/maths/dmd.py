"""Distribution matching (DMD, arXiv:2311.18828, section 3.2), the score regulariser that rCM (arXiv:2510.08431) puts
beside sCM. Notation of trigflow.py; `real` and `fake` are the clean latents that the guided teacher and the
fake-score network see in the same noised sample of the student. All are (B, C, H, W) of one scale.

    grad = (fake - real) / mean|x_0 - real|         the score gap in x_0, normalised per sample
"""

from torch import Tensor

from sana_sprint.maths.trigflow import over


def gap(x_0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """Returns grad of the module header (arXiv:2311.18828, equations 7 and 8), with no gradient of its own."""
    scale_B = (x_0 - real).abs().flatten(1).mean(1)
    return ((fake - real) / over(scale_B.clamp_min(1e-6), x_0)).detach()


def loss(x_0: Tensor, grad: Tensor) -> Tensor:
    """Returns mean[(x_0 - sg(x_0 - grad))^2] / 2, whose gradient in x_0 is grad / numel (arXiv:2405.14867, as its
    released code has it)."""
    return (x_0 - (x_0 - grad).detach()).square().mean() / 2
