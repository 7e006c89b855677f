"""Pictures for prompts and seeds, from stock diffusers folders: a student's 1-4 steps, a teacher's guided
ODE.

A folder is loaded once for all step counts. The same network, text and decoder as in SanaSprintPipeline and
SanaPipeline; the samplers are those of maths/sample.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from tqdm import tqdm

from sana_sprint.evaluation import protocol, weights
from sana_sprint.maths import sample, trigflow
from sana_sprint.models import networks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from sana_sprint.config import Sampling
    from sana_sprint.evaluation.protocol import Prompt

    Draw = Callable[[Sequence[str], Sequence[Tensor]], np.ndarray]

PARTS = ("transformer", "vae", "text_encoder")
REMEDY = "run `dvc repro -f` on the stage that makes it, or fetch it again"


@dataclass(frozen=True)
class Loaded:
    """A pipeline on its device with the settings pictures are drawn with."""

    pipe: Any
    sampling: Sampling
    sigma_d: float
    device: torch.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of one picture's latents."""
        per_latent = self.pipe.vae_scale_factor
        height, width = self.sampling.height_px // per_latent, self.sampling.width_px // per_latent
        return self.pipe.transformer.config.in_channels, height, width

    def text(self, captions: Sequence[str]) -> networks.Text:
        """Returns the captions as the pipeline's own encode_prompt gives them."""
        return self._encode(captions, self.sampling.instruction or None)

    def null(self) -> networks.Text:
        """Returns the empty caption, one row; like SanaPipeline's negative prompt it carries no
        instruction.
        """
        return self._encode([""], None)

    def _encode(self, captions: Sequence[str], instruction: list[str] | None) -> networks.Text:
        embeds, mask = self.pipe.encode_prompt(
            list(captions),
            device=self.device,
            max_sequence_length=self.sampling.max_tokens,
            complex_human_instruction=instruction,
        )[:2]
        return networks.Text(embeds, mask)

    @torch.no_grad()  # not inference mode: FSDP2 keeps the buffers of a first pass
    def student(self, captions: Sequence[str], noises: Sequence[Tensor]) -> np.ndarray:
        """Returns pictures (B, H, W, 3) uint8 in as many steps as there are noises, each (B, C, H, W)."""
        text = self.text(captions)
        guidance_B = torch.full((len(text),), self.sampling.guidance, device=self.device)
        F = trigflow.from_flow(networks.flow_velocity(self.pipe.transformer, text, guidance_B))
        noises = [noise.to(self.device) for noise in noises]
        times = self.sampling.times[str(len(noises))]
        return self.decode(sample.consistency(F, noises, times, self.sigma_d))

    @torch.no_grad()  # not inference mode: FSDP2 keeps the buffers of a first pass
    def teacher(self, captions: Sequence[str], noises: Sequence[Tensor]) -> np.ndarray:
        """Returns pictures (B, H, W, 3) uint8 by the guided flow ODE in sampling.teacher_steps from
        noises[0].
        """
        text = self.text(captions)
        scale_B = torch.full((len(text),), self.sampling.teacher_guidance, device=self.device)
        v = networks.guided_velocity(self.pipe.transformer, text, self.null(), scale_B)
        times = sample.flow_times(self.sampling.teacher_steps, self.sampling.teacher_shift)
        return self.decode(sample.flow_ode(v, noises[0].to(self.device), times))

    def decode(self, latents: Tensor) -> np.ndarray:
        """Returns the pictures (B, H, W, 3) uint8 of latents of unit scale, rounded as the stock pipelines
        do.
        """
        vae = self.pipe.vae
        return to_uint8(vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0])


def to_uint8(x: Tensor) -> np.ndarray:
    """Returns pictures (B, 3, H, W) in [-1, 1] as (B, H, W, 3) uint8: clamped, scaled to 0..255 and
    rounded.
    """
    scaled = (x.float() / 2 + 0.5).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def device() -> torch.device:
    """Returns the accelerator where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def checked(folder: Path) -> Path:
    """Returns the path of a pipeline folder whose files of weights are there and whole, by their headers. Raises
    ValueError naming the folder, or the file that is not.
    """
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder}: no model_index.json, so no diffusers pipeline; run `dvc repro` to make it")
    for part in PARTS:
        files = sorted((folder / part).glob("*.safetensors"))
        if not files:
            raise ValueError(f"{folder / part}: {weights.LACKING}; {REMEDY}")
        for file in files:
            with weights.readable(file, REMEDY), safe_open(file, framework="pt"):
                pass
    return folder


def load(folder: Path, sampling: Sampling, sigma_d: float) -> Loaded:
    """Returns a local SanaPipeline or SanaSprintPipeline folder in float32, ready to draw. Raises ValueError naming the
    folder when it is none, or when its weights are cut or no safetensors.
    """
    from diffusers import DiffusionPipeline

    with weights.readable(checked(folder), REMEDY):
        pipe = DiffusionPipeline.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    pipe.set_progress_bar_config(disable=True)
    for part in PARTS:
        getattr(pipe, part).eval().requires_grad_(False)
    return Loaded(pipe.to(device()), sampling, sigma_d, device())


def noises(loaded: Loaded, prompts: Sequence[Prompt], steps: int, seed: int) -> list[Tensor]:
    """Returns one batch of noise (B, C, H, W) per step."""
    shape = loaded.latent_shape
    return [torch.stack([protocol.noise(seed, p.index, step, shape) for p in prompts]) for step in range(steps)]


def pictures(
    loaded: Loaded, draw: Draw, prompts: Sequence[Prompt], steps: int, seed: int, batch: int, name: str
) -> np.ndarray:
    """Returns a picture per prompt (N, H, W, 3) uint8. `draw` is loaded.student with `steps` steps, or
    loaded.teacher with one noise. The batch changes speed, not pictures.
    """
    import numpy as np

    parts = []
    for start in tqdm(range(0, len(prompts), batch), desc=name, mininterval=3):
        part = prompts[start : start + batch]
        parts.append(draw([p.caption for p in part], noises(loaded, part, steps, seed)))
    return np.concatenate(parts)
