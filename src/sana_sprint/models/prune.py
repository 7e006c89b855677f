"""Pruning a SANA transformer: depth by block importance (SANA-1.5, arXiv:2501.18427, section 3.2), width by
first-order importance of linear-attention heads and feed-forward channels. Scores are maths/importance.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sana_sprint.maths import importance
from sana_sprint.models import networks

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusers import SanaTransformer2DModel


@dataclass(frozen=True)
class Cut:
    """A network cut out of a teacher, and what the outputs of its blocks stand for: that of block i for the output of
    the teacher's block `follows[i]`, from 0, of whose residual stream `channels` are left."""

    network: SanaTransformer2DModel
    follows: list[int]
    channels: Tensor


def follows(kept: list[int], layers: int) -> list[int]:
    """Returns `Cut.follows` of the kept blocks of a teacher of `layers`: the last block before the next kept one, since
    what comes next was trained on that block's output."""
    return [after - 1 for after in [*kept[1:], layers]]


@torch.no_grad()
def block_importance(transformer: SanaTransformer2DModel, forward: Callable[[], object]) -> Tensor:
    """Returns BI (layers,), measured on whatever calibration passes `forward` makes."""
    scores: list[list[Tensor]] = [[] for _ in transformer.transformer_blocks]
    hooks = [
        block.register_forward_hook(
            lambda _module, inputs, output, i=i: scores[i].append(importance.block(inputs[0], output))
        )
        for i, block in enumerate(transformer.transformer_blocks)
    ]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([torch.stack(s).mean() for s in scores])


def keep_blocks(transformer: SanaTransformer2DModel, blocks: list[int]) -> SanaTransformer2DModel:
    """Returns the network with only these blocks, in order; everything else is copied."""
    prefix = "transformer_blocks."
    weights = {}
    for key, value in transformer.state_dict().items():
        if not key.startswith(prefix):
            weights[key] = value
            continue
        index, rest = key.removeprefix(prefix).split(".", 1)
        if int(index) in blocks:
            weights[f"{prefix}{blocks.index(int(index))}.{rest}"] = value
    return _rebuilt(transformer, weights, num_layers=len(blocks))


def head_importance(transformer: SanaTransformer2DModel) -> list[Tensor]:
    """Returns per block the importance (heads,) of its self-attention heads, from accumulated gradients."""
    return [
        importance.group(block.attn1.to_v.weight, _gradient(block.attn1.to_v), transformer.config.num_attention_heads)
        for block in transformer.transformer_blocks
    ]


def channel_importance(transformer: SanaTransformer2DModel) -> list[Tensor]:
    """Returns per block the importance (hidden channels,) of its feed-forward, from accumulated gradients."""
    scores = []
    for block in transformer.transformer_blocks:
        point = block.ff.conv_point
        weight, gradient = point.weight.squeeze((2, 3)).T, point.weight.grad.squeeze((2, 3)).T
        scores.append(importance.group(weight, gradient, len(weight)))
    return scores


def narrow(transformer: SanaTransformer2DModel, heads: int, mlp_ratio: float) -> SanaTransformer2DModel:
    """Returns the network narrowed to `heads` x head_dim channels with feed-forwards of mlp_ratio times that. SANA
    is as wide as its heads together, so the residual stream keeps the channels of the heads that matter most over
    all blocks; each feed-forward keeps its own best channels. Needs gradients on `transformer`. With everything
    kept it is the same network. Raises ValueError for a width that the cross-attention heads do not divide."""
    config = transformer.config
    dim, old = config.attention_head_dim, config.num_attention_heads * config.attention_head_dim
    new, cross_heads = heads * dim, config.num_cross_attention_heads
    if cross_heads * config.cross_attention_head_dim != old or new % cross_heads:
        raise ValueError(
            f"prune.sizes: {heads} heads of {dim} channels do not fit {cross_heads} cross-attention heads; "
            "choose a number of heads whose channels they divide"
        )
    rows = kept_channels(transformer, heads)
    smaller = networks.reshaped(
        transformer,
        num_attention_heads=heads,
        cross_attention_head_dim=new // cross_heads,
        cross_attention_dim=new,
        mlp_ratio=mlp_ratio,
    )
    weights = keep_channels(transformer, int(mlp_ratio * new))
    shapes = {key: value.shape for key, value in smaller.state_dict().items()}
    cut = {key: _cut(value, shapes[key], rows, old) for key, value in weights.items()}
    smaller.load_state_dict(cut, strict=True)
    return smaller.eval()


def kept_channels(transformer: SanaTransformer2DModel, heads: int) -> Tensor:
    """Returns the channels of the `heads` self-attention heads that matter most, from accumulated gradients."""
    dim = transformer.config.attention_head_dim
    kept = importance.keep(torch.stack(head_importance(transformer)).sum(0), heads)
    return torch.cat([torch.arange(h * dim, (h + 1) * dim) for h in kept])


def keep_channels(transformer: SanaTransformer2DModel, count: int) -> dict[str, Tensor]:
    """Returns the weights with the `count` most important feed-forward channels of each block, gates included."""
    weights = dict(transformer.state_dict())
    for i, scores in enumerate(channel_importance(transformer)):
        rows = torch.tensor(importance.keep(scores, count))
        gated = torch.cat([rows, rows + len(scores)])
        ff = f"transformer_blocks.{i}.ff."
        for name in ("conv_inverted.weight", "conv_inverted.bias", "conv_depth.weight", "conv_depth.bias"):
            weights[ff + name] = weights[ff + name][gated]
        weights[f"{ff}conv_point.weight"] = weights[f"{ff}conv_point.weight"][:, rows]
    return weights


def _cut(value: Tensor, shape: torch.Size, rows: Tensor, old: int) -> Tensor:
    """Cuts every axis that is k times the old width to k times the kept rows."""
    for axis, (have, want) in enumerate(zip(value.shape, shape, strict=True)):
        if have != want:
            assert want == have // old * len(rows), (value.shape, shape)
            kept = torch.cat([rows + k * old for k in range(have // old)])
            value = value.index_select(axis, kept.to(value.device))
    return value


def _gradient(layer: torch.nn.Linear) -> Tensor:
    if layer.weight.grad is None:
        raise ValueError("prune: width needs gradients; run a backward pass on calibration data first")
    return layer.weight.grad


def _rebuilt(
    transformer: SanaTransformer2DModel, weights: dict[str, Tensor], **changes: object
) -> SanaTransformer2DModel:
    smaller = networks.reshaped(transformer, **changes)
    smaller.load_state_dict(weights, strict=True)
    return smaller.eval().to(transformer.device)
