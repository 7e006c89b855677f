"""Distillation from prompts alone: the latents that the guided teacher draws for the training captions take the place
of the pictures'."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from sana_sprint import storage
from sana_sprint.data import loader
from sana_sprint.data.loader import Latents
from sana_sprint.maths import sample
from sana_sprint.models import bundle, networks
from sana_sprint.models.networks import Text
from sana_sprint.training import draws

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import SanaTransformer2DModel
    from torch import Tensor

    from sana_sprint.config import Sampling

BATCH = 64  # pictures drawn at once; changes no picture


def drawn(latents: Path, teacher: Path, sampling: Sampling, seed: int, cache: Path) -> Path:
    """Returns a folder like data/latents whose training latents the teacher drew, one for each training caption in
    sampling.teacher_steps from noise of (seed, picture). It is made once and kept in `cache` under a key of all this.
    """
    key = storage.digest_of([storage.digest(latents), storage.digest(teacher), sampling.model_dump(), seed])
    folder = cache / key[:12]
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    captions, index = Latents(latents, "train"), storage.read_json(latents / loader.INDEX)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = bundle.load_transformer(teacher).to(device)
    with storage.whole_folder(folder) as unfinished:
        for file in latents.iterdir():
            shutil.copy(file, unfinished / file.name)
        first = 0
        for part in (p for p in index["shards"] if p["split"] == "train"):
            rows = torch.arange(first, first + part["count"])
            x = pictures(network, captions, rows, sampling, seed)
            save_file({"latents": x, "captions": captions.captions[rows]}, unfinished / part["file"])
            first += part["count"]
    return folder


@torch.inference_mode()
def pictures(network: SanaTransformer2DModel, data: Latents, rows: Tensor, sampling: Sampling, seed: int) -> Tensor:
    """Returns the guided teacher's latents (B, C, H, W) of unit scale for the captions of pictures `rows` (B,)."""
    times = sample.flow_times(sampling.teacher_steps, sampling.teacher_shift)
    device, null = network.device, Text(*data.null).to(network.device)
    parts = []
    for some in tqdm(rows.split(BATCH), desc="teacher draws for the captions", mininterval=3):
        text = Text(*data.text(some)).to(device)
        noise = torch.stack([noise_of(int(row), seed, data.x.shape[1:]) for row in some]).to(device)
        scale_B = torch.full((len(some),), sampling.teacher_guidance, device=device)
        v = networks.guided_velocity(network, text, null, scale_B)
        parts.append(sample.flow_ode(v, noise, times).float().cpu())
    return torch.cat(parts)


def noise_of(row: int, seed: int, shape: tuple[int, ...]) -> Tensor:
    """Returns the noise of a picture, the same in whatever batch it is drawn."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(draws.seed(seed, row)))
