"""Latent adversarial diffusion distillation (LADD, arXiv:2403.12015) as SANA-Sprint uses it: hinge losses on the
logits of heads over a frozen teacher's features (arXiv:2503.09641, section 3.3, equations 12 and 13).
Logits are (B, n), one per token and head."""

import torch
from torch import Tensor
from torch.nn.functional import relu


def heads_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Returns (E[relu(1 - D(real))] + E[relu(1 + D(fake))]) / 2 (arXiv:2503.09641, section 3.3)."""
    return (relu(1 - real).mean() + relu(1 + fake).mean()) / 2


def student_loss(fake: Tensor) -> Tensor:
    """Returns -E[D(fake)] (arXiv:2503.09641, section 3.3)."""
    return -fake.mean()


def misaligned(x_0: Tensor) -> Tensor:
    """Returns real latents rolled by one within the batch: judged with unshifted captions they are fakes
    (arXiv:2503.09641, appendix). A batch of one has no other caption, so it yields no pair."""
    return x_0.roll(1, 0) if len(x_0) > 1 else x_0[:0]


def accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """Returns the share of logits on the right side of zero = (P[D(real) > 0] + P[D(fake) < 0]) / 2."""
    return torch.stack([(real > 0).float().mean(), (fake < 0).float().mean()]).mean()
