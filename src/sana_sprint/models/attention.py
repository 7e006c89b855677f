"""SANA's linear attention with its products in float32 under any autocast.

diffusers turns queries, keys and values into float32 before the products, as the public training code does. Autocast
would turn them back into bfloat16, sums over all tokens and the normaliser that divides them included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from diffusers import SanaTransformer2DModel
    from diffusers.models.attention_processor import Attention
    from torch import Tensor

EPS = 1e-15  # diffusers' own


class LinearAttention:
    """relu(Q) (relu(K)^T V) / (relu(Q) relu(K)^T 1) per head (arXiv:2410.10629, section 2.2): a processor of diffusers'
    Attention, equal to its own for SANA where no autocast is on."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,  # noqa: ARG002  what diffusers may pass; self-attention
        attention_mask: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Returns (B, N, width) from (B, N, width)."""
        query, key, value = (project(hidden_states) for project in (attn.to_q, attn.to_k, attn.to_v))
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        with torch.autocast(hidden_states.device.type, enabled=False):
            q, k, v = (x.transpose(1, 2).unflatten(1, (attn.heads, -1)) for x in (query, key, value))
            q, k, v = q.relu().float(), k.relu().float().transpose(2, 3), v.float()
            summed = functional.pad(v, (0, 0, 0, 1), value=1.0) @ k @ q  # the row of ones becomes the normaliser
            mean = summed[:, :, :-1] / (summed[:, :, -1:] + EPS)
        linear, dropout = attn.to_out
        return dropout(linear(mean.flatten(1, 2).transpose(1, 2).to(hidden_states.dtype)))


def in_float32(transformer: SanaTransformer2DModel) -> None:
    """Makes the network's linear attention compute its products in float32 under any autocast."""
    for block in transformer.transformer_blocks:
        block.attn1.set_processor(LinearAttention())
