"""The foundation's parts, built from the params section with the library's own classes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sana_sprint.models import networks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import AutoencoderDC, SanaTransformer2DModel
    from transformers import Gemma2Model, GemmaTokenizer

    from sana_sprint.config import Autoencoder, TextEncoder, TrainFoundation

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")


def tokenizer(captions: Sequence[str], vocabulary: int) -> GemmaTokenizer:
    """Returns a Gemma tokenizer whose byte-pair vocabulary is trained on lower-cased captions; it puts <bos> first,
    as Gemma's does. Letters it has not seen become <unk>."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import GemmaTokenizer

    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_previous")
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), show_progress=False, min_frequency=2
    )
    raw.train_from_iterator(sorted({c.lower().strip() for c in captions}) * 2, trainer)
    state = json.loads(raw.to_str())["model"]
    made = GemmaTokenizer(vocab=state["vocab"], merges=[tuple(m) for m in state["merges"]])
    bos = made.convert_tokens_to_ids("<bos>")
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", bos)]
    )
    return made


def text_encoder(params: TextEncoder, tokens: GemmaTokenizer) -> Gemma2Model:
    """Returns a Gemma2 with random weights that reads this tokenizer's tokens. Untrained it is a fixed random
    feature map of token, order and neighbours, from which a small SANA reads every attribute."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=len(tokens),
        hidden_size=params.width,
        intermediate_size=2 * params.width,
        num_hidden_layers=params.layers,
        num_attention_heads=params.heads,
        num_key_value_heads=params.heads,
        head_dim=params.width // params.heads,
        query_pre_attn_scalar=params.width // params.heads,
        sliding_window=params.window,
        initializer_range=params.init_std,
        max_position_embeddings=512,
        pad_token_id=tokens.pad_token_id,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        attn_implementation="eager",
    )
    return Gemma2Model(config)


def autoencoder(params: Autoencoder, scaling_factor: float = 1.0) -> AutoencoderDC:
    """Returns a DC-AE of residual blocks with random weights; it shrinks each side by 2 ** (len(widths) - 1)."""
    from diffusers import AutoencoderDC

    widths, layers, none = tuple(params.widths), tuple(params.layers), tuple(() for _ in params.widths)
    return AutoencoderDC(
        in_channels=3,
        latent_channels=params.latent_channels,
        attention_head_dim=32,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=none,
        decoder_qkv_multiscales=none,
        upsample_block_type="interpolate",
        downsample_block_type="stride_conv",
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
        scaling_factor=scaling_factor,
    )


def base_transformer(params: TrainFoundation, sample_size: int) -> SanaTransformer2DModel:
    """Returns the base SANA with random weights: no QK-norm, time fed as 1000 s, as SANA's first release."""
    from diffusers import SanaTransformer2DModel

    shape = params.transformer
    width = shape.heads * shape.head_dim
    return SanaTransformer2DModel(
        in_channels=params.autoencoder.latent_channels,
        out_channels=params.autoencoder.latent_channels,
        num_attention_heads=shape.heads,
        attention_head_dim=shape.head_dim,
        num_layers=shape.layers,
        num_cross_attention_heads=shape.cross_heads,
        cross_attention_head_dim=width // shape.cross_heads,
        cross_attention_dim=width,
        caption_channels=params.text_encoder.width,
        mlp_ratio=shape.mlp_ratio,
        sample_size=sample_size,
        patch_size=shape.patch_px,
        interpolation_scale=1 if shape.position_embedding else None,
    )


def dense_time(base: SanaTransformer2DModel) -> SanaTransformer2DModel:
    """Returns the teacher to fine-tune: the base's weights, time fed as s in [0, 1] and RMS-normalised queries and
    keys whose gains start at one (arXiv:2503.09641, section 3.1)."""
    teacher = networks.reshaped(base, qk_norm="rms_norm_across_heads", timestep_scale=0.001)
    gains = {k: v for k, v in teacher.state_dict().items() if ".norm_q." in k or ".norm_k." in k}
    teacher.load_state_dict(gains | base.state_dict(), strict=True)
    return teacher
