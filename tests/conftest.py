"""Fixtures of all tests: offline settings and a tiny real SanaSprintPipeline."""

from __future__ import annotations

import json
import os

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
}
os.environ.pop("MLFLOW_TRACKING_URI", None)

from pathlib import Path

import pytest

from tests.stores import anna, empty_store, team_server

__all__ = ["anna", "empty_store", "team_server"]
SAMPLING = {
    "height_px": 64,
    "width_px": 64,
    "guidance": 3.0,
    "max_tokens": 16,
    "instruction": [],
    "sigma_d": 0.5,
    "times": {"1": [1.5708, 0.0], "2": [1.5683, 1.3, 0.0], "4": [1.5683, 1.3, 1.1, 0.6, 0.0]},
}


def _tokenizer():
    from transformers import GemmaTokenizerFast

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz0123456789,.-'"]
    return GemmaTokenizerFast(vocab={piece: row for row, piece in enumerate(pieces)}, merges=[])


def _autoencoder():
    from diffusers import AutoencoderDC

    return AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        encoder_layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        encoder_qkv_multiscales=((), (), (), ()),
        decoder_qkv_multiscales=((), (), (), ()),
        scaling_factor=0.5,
    )


def _text_encoder(vocabulary: int):
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        sliding_window=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return Gemma2Model(config)


def _transformer():
    from diffusers import SanaTransformer2DModel

    return SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        mlp_ratio=2.0,
        sample_size=8,
        patch_size=1,
        qk_norm="rms_norm_across_heads",
        guidance_embeds=True,
    )


@pytest.fixture(scope="session")
def sprint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock SanaSprintPipeline folder of random weights (64 px, 4 latent channels) and sampling.json."""
    import torch
    from diffusers import SanaSprintPipeline, SCMScheduler

    torch.manual_seed(0)
    tokenizer = _tokenizer()
    pipeline = SanaSprintPipeline(
        tokenizer=tokenizer,
        text_encoder=_text_encoder(len(tokenizer)),
        vae=_autoencoder(),
        transformer=_transformer(),
        scheduler=SCMScheduler(),
    )
    folder = tmp_path_factory.mktemp("models") / "student"
    pipeline.save_pretrained(folder)
    (folder / "sampling.json").write_text(json.dumps(SAMPLING))
    return folder


@pytest.fixture(scope="session")
def team(tmp_path_factory: pytest.TempPathFactory):
    """The team's server, see tests/team/parts.py: PostgreSQL, S3, MLflow with users."""
    from tests.team import parts

    with parts.team(tmp_path_factory.mktemp("team")) as running:
        yield running
