"""The discriminator heads of LADD: small networks over the frozen teacher's block features.

After SANA-Sprint (arXiv:2503.09641, section 3.3) and StyleGAN-T (arXiv:2301.09515, section 3.2): per tapped block a
spectrally normalised 1x1 convolution, local batch norm, a residual block with a 9-tap circular convolution, and a
1x1 convolution to one logit per token. Captions and time reach the heads through the features.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

if TYPE_CHECKING:
    from diffusers import SanaTransformer2DModel

    from sana_sprint.models.networks import Text


def group_size(batch: int, virtual: int) -> int:
    """Returns the largest divisor of a batch that is at most `virtual`."""
    return max(d for d in range(1, min(virtual, batch) + 1) if batch % d == 0)


class LocalBatchNorm(nn.Module):
    """Batch norm over groups of at most `virtual` samples of (B, C, N), never over a whole global batch. Groups divide
    the batch, so that every batch size works."""

    def __init__(self, channels: int, virtual: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.virtual, self.eps = virtual, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Returns x normalised per channel within each group."""
        grouped = x.unflatten(0, (-1, group_size(len(x), self.virtual))).float()
        mean = grouped.mean((1, 3), keepdim=True)
        var = grouped.var((1, 3), keepdim=True, unbiased=False)
        normal = ((grouped - mean) * (var + self.eps).rsqrt()).flatten(0, 1)
        return normal.to(x.dtype) * self.weight[:, None] + self.bias[:, None]


class Residual(nn.Module):
    """(f(x) + x) / sqrt(2)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Returns the scaled residual sum."""
        return (self.inner(x) + x) / math.sqrt(2)


def norm(kind: str, width: int, virtual_batch: int) -> nn.Module:
    """Returns the norm of a head: the paper's local batch norm, or `layer`, over all channels and tokens of a sample,
    which leaves the difference of means between real and fake for the head to see."""
    return LocalBatchNorm(width, virtual_batch) if kind == "batch" else nn.GroupNorm(1, width)


def head(width: int, virtual_batch: int, kind: str) -> nn.Sequential:
    """Returns one head, (B, width, N) -> (B, 1, N)."""

    def block(taps: int) -> list[nn.Module]:
        conv = nn.Conv1d(width, width, taps, padding=taps // 2, padding_mode="circular", bias=False)  # the norm has one
        return [spectral_norm(conv), norm(kind, width, virtual_batch), nn.LeakyReLU(0.2)]

    return nn.Sequential(*block(1), Residual(nn.Sequential(*block(9))), spectral_norm(nn.Conv1d(width, 1, 1)))


class Heads(nn.Module):
    """One head per tapped block of the teacher; block indices count from 0."""

    def __init__(self, width: int, blocks: list[int], virtual_batch: int, kind: str) -> None:
        super().__init__()
        self.blocks = blocks
        self.heads = nn.ModuleList(head(width, virtual_batch, kind) for _ in blocks)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Returns logits (B, heads x N) from block features, each (B, N, width)."""
        pairs = zip(self.heads, features, strict=True)
        return torch.cat([h(x.transpose(1, 2)).squeeze(1) for h, x in pairs], dim=1)


def features(teacher: SanaTransformer2DModel, blocks: list[int], x: Tensor, t_B: Tensor, text: Text) -> list[Tensor]:
    """Returns the outputs (B, N, width) of the teacher's tapped blocks at TrigFlow latents x = x_t / sigma_d and
    times t_B. Gradient flows to x, never to the teacher's frozen weights."""
    from sana_sprint.maths import trigflow
    from sana_sprint.models import networks

    if max(blocks) >= len(teacher.transformer_blocks):
        raise ValueError(
            f"distill.heads.blocks {blocks}: the teacher has blocks 0 to {len(teacher.transformer_blocks) - 1}"
        )
    with networks.block_outputs(teacher, blocks) as seen, networks.first_blocks(teacher, max(blocks) + 1):
        trigflow.from_flow(networks.flow_velocity(teacher, text))(x, t_B)
    return [seen[i] for i in blocks]
