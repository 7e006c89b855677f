"""Tiny SANA networks of random weights, and a mode that lets diffusers compute in float64."""

from typing import Any

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sana_sprint.models.networks import Text

CHANNELS, SIZE, TOKENS, CAPTION = 4, 4, 5, 12


class Float64(TorchFunctionMode):
    """Widens the float32 casts inside diffusers (time embedding, RMS norm, linear attention) to float64, so
    that derivatives can be compared to more than single precision."""

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.float:
            return args[0].double()
        if func is Tensor.to and torch.float32 in args:
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        return func(*args, **kwargs)


def transformer(seed: int = 0, **config: Any) -> SanaTransformer2DModel:
    """Returns a teacher of two blocks with QK-norm and dense time, every weight random, in float32."""
    torch.manual_seed(seed)
    shape = {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": CAPTION,
        "mlp_ratio": 2.0,
        "sample_size": SIZE,
        "patch_size": 1,
        "qk_norm": "rms_norm_across_heads",
        "timestep_scale": 0.001,
    }
    network = SanaTransformer2DModel(**(shape | config))
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return network.eval()


def text(batch: int = 3, seed: int = 1) -> Text:
    """Returns captions of different lengths in float32; padding holds numbers as large as the words."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(batch, TOKENS, CAPTION, generator=generator)
    lengths = torch.arange(batch) % TOKENS + 1
    return Text(embeds, (torch.arange(TOKENS) < lengths[:, None]).long())


def latents(batch: int = 3, seed: int = 2) -> Tensor:
    """Returns noise (B, C, H, W) in float32."""
    return torch.randn(batch, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def double(text: Text) -> Text:
    """Returns captions with float64 embeddings."""
    return Text(text.embeds.double(), text.mask)
