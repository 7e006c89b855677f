"""Networks of random weights in the shapes that the benchmark runs: the demo profile's, the two published ones of
SANA-Sprint (arXiv:2503.09641), and a tiny one that takes the published ones' path in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from torch import Tensor
from transformers import Gemma2Config, Gemma2Model

from sana_sprint import config
from sana_sprint.models import build, networks
from sana_sprint.models.networks import Text

PROFILES = Path(__file__).parents[2] / "profiles"
DC_AE = {"downsample_block_type": "Conv", "upsample_block_type": "interpolate", "scaling_factor": 0.41407}  # f32c32
TAPS_OF_20 = (2, 8, 14, 19)  # blocks that the released heads of the 1.6B see
GEMMA = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}  # Gemma-2-2B, as Gemma2Config has it


@dataclass(frozen=True)
class Shape:
    """A teacher, its encoders, and the profile whose distillation is run."""

    profile: str
    layers: int
    student_layers: int
    heads: int
    head_dim: int
    cross_heads: int
    channels: int
    latent_px: int
    image_px: int
    tokens: int
    caption: int
    autoencoder: Callable[[], AutoencoderDC]
    text_encoder: dict[str, Any]
    patch_px: int = 1
    position: bool = False
    taps: tuple[int, ...] = ()  # the heads' blocks, the profile's where none are given

    @property
    def params(self) -> config.Distill:
        """The distillation of the profile."""
        params = config.parse(config.Distill, "distill", PROFILES / f"{self.profile}.yaml")
        heads = params.heads.model_copy(update={"blocks": list(self.taps) or params.heads.blocks})
        return params.model_copy(update={"recipe": "sprint", "heads": heads, "tangent_warmup_iterations": 0})

    def transformer(self, layers: int) -> SanaTransformer2DModel:
        """Returns a teacher: QK-norm and dense time."""
        width = self.heads * self.head_dim
        return SanaTransformer2DModel(
            in_channels=self.channels,
            out_channels=self.channels,
            num_layers=layers,
            num_attention_heads=self.heads,
            attention_head_dim=self.head_dim,
            num_cross_attention_heads=self.cross_heads,
            cross_attention_head_dim=width // self.cross_heads,
            cross_attention_dim=width,
            caption_channels=self.caption,
            sample_size=self.latent_px,
            patch_size=self.patch_px,
            interpolation_scale=1 if self.position else None,
            qk_norm="rms_norm_across_heads",
            timestep_scale=0.001,
        )


@dataclass
class Networks:
    """What both schemes share."""

    teacher: SanaTransformer2DModel
    student: SanaTransformer2DModel
    autoencoder: AutoencoderDC
    text_encoder: Gemma2Model
    null: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Pairs:
    """Pictures (B, 3, H, W) with the token ids (B, L) and masks of their captions."""

    images: Tensor
    ids: Tensor
    mask: Tensor


def demo() -> Shape:
    """Returns the shape of the demo profile with its larger student."""
    path = PROFILES / "demo.yaml"
    model = config.parse(config.Foundation, "foundation", path).model
    size = config.parse(config.Prune, "prune", path).sizes["base"]
    sampling = config.parse(config.Sampling, "sampling", path)
    of, text, coder = model.transformer, model.text_encoder, model.autoencoder
    head_dim = text.width // text.heads
    return Shape(
        "demo", of.layers, size.layers, of.heads, of.head_dim, of.cross_heads, coder.latent_channels,
        sampling.height_px >> (len(coder.widths) - 1), sampling.height_px, sampling.max_tokens, text.width,
        lambda: build.autoencoder(coder),
        {"vocab_size": text.vocabulary, "hidden_size": text.width, "intermediate_size": 2 * text.width,
         "num_hidden_layers": text.layers, "num_attention_heads": text.heads, "num_key_value_heads": text.heads,
         "head_dim": head_dim},
        of.patch_px, of.position_embedding,
    )  # fmt: skip


def published(layers: int, heads: int, cross_heads: int) -> Shape:
    """Returns a published shape at 1024 px with DC-AE f32c32 and Gemma-2-2B (arXiv:2503.09641, section 4.1)."""
    return Shape(
        "sana", layers, layers, heads, 32, cross_heads, 32, 32, 1024, 300, 2304,
        lambda: AutoencoderDC(**DC_AE), GEMMA, taps=tuple(round((i + 1) * layers / 20) - 1 for i in TAPS_OF_20),
    )  # fmt: skip


def tiny() -> Shape:
    """Returns two narrow blocks on 4 x 4 latents."""
    small = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8), "latent_channels": 4}
    blocks = {f"{side}_block_types": ("ResBlock",) * 3 for side in ("encoder", "decoder")}
    layers = {f"{side}_layers_per_block": (1, 1, 1) for side in ("encoder", "decoder")}
    scales = {f"{side}_qkv_multiscales": ((), (), ()) for side in ("encoder", "decoder")}
    text = {"vocab_size": 64, "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 6,
            "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
    return Shape(
        "smoke", 2, 2, 2, 8, 2, 4, 4, 16, 6, 12,
        lambda: AutoencoderDC(**small, **blocks, **layers, **scales, attention_head_dim=8), text, taps=(0, 1),
    )  # fmt: skip


SHAPES: dict[str, Callable[[], Shape]] = {
    "tiny": tiny,
    "demo": demo,
    "0.6B": lambda: published(28, 36, 16),
    "1.6B": lambda: published(20, 70, 20),
}


def made(shape: Shape, device: str, coders: torch.dtype = torch.float32) -> Networks:
    """Returns the networks of a shape; a student that differs a little from its teacher, so that tangents are no
    zeros. `coders` is the precision of the frozen encoders."""
    torch.manual_seed(0)
    with torch.device(device):
        teacher = shape.transformer(shape.layers)
        student = networks.embed_guidance(shape.transformer(shape.student_layers))
        stirred(teacher, student)
        autoencoder = shape.autoencoder().to(coders).requires_grad_(False).eval()
        text_encoder = Gemma2Model(Gemma2Config(**shape.text_encoder)).to(coders).requires_grad_(False).eval()
        null = torch.randn(1, shape.tokens, shape.caption), (torch.arange(shape.tokens) < 2)[None].long()
    return Networks(teacher, student, autoencoder, text_encoder, null)


@torch.no_grad()
def stirred(*models: SanaTransformer2DModel) -> None:
    """Moves every weight off the zeros of its initialisation."""
    for model in models:
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)


def pairs(shape: Shape, batch: int, vocabulary: int, device: str) -> Pairs:
    """Returns random pictures with captions of different lengths."""
    g = torch.Generator().manual_seed(1)
    lengths = torch.randint(shape.tokens // 4 + 1, shape.tokens + 1, (batch,), generator=g)
    ids = torch.randint(3, vocabulary, (batch, shape.tokens), generator=g)
    images = torch.rand(batch, 3, shape.image_px, shape.image_px, generator=g) * 2 - 1
    mask = (torch.arange(shape.tokens) < lengths[:, None]).long()
    return Pairs(images.to(device), ids.to(device), mask.to(device))


@torch.no_grad()
def encode(networks_: Networks, batch: Pairs) -> tuple[Tensor, Text]:
    """Returns the latents and caption embeddings of a batch in float32."""
    coder, text = networks_.autoencoder, networks_.text_encoder
    latents = coder.encode(batch.images.to(coder.dtype)).latent.float() * coder.config.scaling_factor
    embeds = text(batch.ids, attention_mask=batch.mask).last_hidden_state.float()
    return latents, Text(embeds, batch.mask)
