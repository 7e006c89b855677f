"""Distillation from prompts alone: the latents that the guided teacher draws for the training captions take the place
of the pictures'."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
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
from sana_sprint.training import checkpoints, draws

if TYPE_CHECKING:
    from diffusers import SanaTransformer2DModel
    from torch import Tensor

    from sana_sprint.config import Sampling

BATCH = 64  # pictures drawn at once; changes no picture


def drawn(latents: Path, teacher: Path, sampling: Sampling, seed: int, cache: Path) -> Path:
    """Returns a folder like data/latents whose training latents the teacher drew, one for each training caption in
    sampling.teacher_steps from noise of (seed, picture). It is made once, by one process at a time, and kept in `cache`
    under a key of all this and of the code; of a run that was cut short the shards stay.
    """
    code = [checkpoints.code(["maths", "models"])]
    code += [storage.digest(Path(str(file))) for file in (__file__, draws.__file__, loader.__file__)]
    key = storage.digest_of([storage.digest(latents), storage.digest(teacher), sampling.model_dump(), seed, code])
    folder = cache / key[:12]
    with checkpoints.owned(folder):
        if not folder.exists():
            make(folder, latents, teacher, sampling, seed)
            torch.cuda.empty_cache()  # Ray's workers use the same device
    return folder


def make(folder: Path, latents: Path, teacher: Path, sampling: Sampling, seed: int) -> None:
    """Draws shard by shard and puts all in its place."""
    captions, index = Latents(latents, "train"), storage.read_json(latents / loader.INDEX)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = bundle.load_transformer(teacher).to(device)
    shards, first = folder.with_name(f"{folder.name}-shards"), 0
    shards.mkdir(exist_ok=True)
    for part in (p for p in index["shards"] if p["split"] == "train"):
        rows, file = torch.arange(first, first + part["count"]), shards / part["file"]
        first += part["count"]
        if not file.is_file():
            x = pictures(network, captions, rows, sampling, seed)
            with storage.whole_file(file) as unfinished:
                save_file({"latents": x, "captions": captions.captions[rows]}, unfinished)
    with storage.whole_folder(folder) as unfinished:
        drawn = {file.name for file in shards.iterdir()}
        for file in (*shards.iterdir(), *(file for file in latents.iterdir() if file.name not in drawn)):
            share(file, unfinished / file.name)
    shutil.rmtree(shards)


def share(file: Path, place: Path) -> None:
    """Puts a file in a second place without its bytes, embeddings of captions being many, or with them where a link
    cannot lead."""
    try:
        os.link(file.resolve(), place)
    except OSError:
        shutil.copy(file, place)


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
