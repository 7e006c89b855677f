"""The small foundation: DC-AE, tokenizer, Gemma2 and base SANA trained on the corpus, in that order. The text
encoder keeps its random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sana_sprint.models import build, bundle
from sana_sprint.models.networks import Text
from sana_sprint.training import autoencoder, flow

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import lightning as L
    import numpy as np
    from diffusers import AutoencoderDC, SanaTransformer2DModel
    from transformers import Gemma2Model

    from sana_sprint.config import Flow, Sampling, TrainFoundation


class Captioned(Dataset):
    """Item k is the batch of step k: {"step", "x_0", "embeds", "mask"}."""

    def __init__(self, x: Tensor, distinct: Text, captions: Tensor, params: Flow, seed: int) -> None:
        self.x, self.distinct, self.captions, self.params, self.seed = x, distinct, captions, params, seed

    def __len__(self) -> int:
        """Returns the number of steps."""
        return self.params.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        """Returns the batch of a step."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        rows = torch.randint(len(self.x), (self.params.batch,), generator=generator)
        text = self.distinct[self.captions[rows]]
        return {"step": step, "x_0": self.x[rows], "embeds": text.embeds, "mask": text.mask}


def train(
    params: TrainFoundation,
    sampling: Sampling,
    pixels: np.ndarray,
    captions: Sequence[str],
    out: Path,
    extra: list[L.Callback],
) -> dict[str, float]:
    """Writes a stock SanaPipeline folder trained on pictures (N, H, W, 3) uint8 and their captions. `extra` are
    callbacks of both trainings. Returns its metrics."""
    torch.manual_seed(params.seed)
    pictures = torch.from_numpy(pixels)
    vae, psnr_db = train_autoencoder(params, pictures, extra)
    x = encode(vae, pictures)
    vae.register_to_config(scaling_factor=float(1 / x.std()))
    x = x * vae.config.scaling_factor
    tokens = build.tokenizer(captions, params.text_encoder.vocabulary)
    encoder = build.text_encoder(params.text_encoder, tokens).eval()
    base = build.base_transformer(params, x.shape[-1])
    averaged = train_base(params, base, x, embedded(encoder, tokens, captions, sampling), extra)
    frozen = {"tokenizer": tokens, "text_encoder": encoder, "vae": vae.eval()}
    bundle.save_teacher(out, averaged, frozen, sampling.teacher_shift)
    return {"psnr_db": psnr_db, "scaling_factor": float(vae.config.scaling_factor), "tokens": len(tokens)}


def train_autoencoder(
    params: TrainFoundation, pictures: Tensor, extra: list[L.Callback]
) -> tuple[AutoencoderDC, float]:
    """Returns the trained DC-AE and its peak signal-to-noise ratio (dB) on the first 256 pictures."""
    p = params.autoencoder
    vae = build.autoencoder(p)
    steps = p.steps + p.decoder_steps
    data = autoencoder.Pictures(pictures, p.batch, params.seed, steps)
    flow.fit(autoencoder.AutoencoderTraining(vae, p, params.seed), data, steps, extra, "autoencoder")
    some = pictures[:256]
    with torch.inference_mode():
        error = vae.decode(vae.encode(autoencoder.as_input(some)).latent).sample - autoencoder.as_input(some)
    return vae, float(-10 * (error / 2).square().mean().log10())


@torch.no_grad()
def encode(vae: AutoencoderDC, pictures: Tensor) -> Tensor:
    """Returns the latents of pictures (N, H, W, 3) uint8."""
    return torch.cat([vae.encode(autoencoder.as_input(part)).latent for part in pictures.split(256)])


@torch.no_grad()
def embedded(encoder: Gemma2Model, tokens: Any, captions: Sequence[str], sampling: Sampling) -> tuple[Text, Tensor]:
    """Returns the embeddings of the distinct captions, the empty one first, and each caption's row among them."""
    distinct = ["", *sorted(set(captions))]
    tokens.padding_side = "right"
    out = tokens(
        [text.lower().strip() for text in distinct],
        padding="max_length",
        max_length=sampling.max_tokens,
        truncation=True,
        return_tensors="pt",
    )
    states = encoder(input_ids=out.input_ids, attention_mask=out.attention_mask).last_hidden_state
    row_of = {text: row for row, text in enumerate(distinct)}
    return Text(states, out.attention_mask), torch.tensor([row_of[text] for text in captions])


def train_base(
    params: TrainFoundation,
    base: SanaTransformer2DModel,
    x: Tensor,
    text: tuple[Text, Tensor],
    extra: list[L.Callback],
) -> SanaTransformer2DModel:
    """Returns the EMA of the base model trained on latents x."""
    distinct, rows = text
    module = flow.FlowTraining(base.train(), distinct[:1], params.flow, params.seed)
    data = Captioned(x, distinct, rows, params.flow, params.seed)
    flow.fit(module, data, params.flow.steps, extra, "base model")
    return module.averaged.eval()
