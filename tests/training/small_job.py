"""A tiny distillation job: folders of tiny networks, the smoke profile's sampling, a few iterations."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import SanaTransformer2DModel

from sana_sprint import config
from sana_sprint.models import bundle, networks
from sana_sprint.training import attempts, draws, job

SAMPLING = config.parse(config.Sampling, "sampling", Path("profiles/smoke.yaml"))
SIGMA_D = 0.5
MACHINES = {"images_per_s", "time_left_s", "peak_memory_mb"}  # curves that tell of the machine and not of the training


@dataclass(frozen=True)
class Inputs:
    """The folders that jobs share: latents, teacher, and the student's start with an autoencoder."""

    latents: Path
    teacher: Path
    trigflow: Path

    @classmethod
    def make(cls, root: Path, latents: Path, vae: Path, teacher: SanaTransformer2DModel) -> "Inputs":
        torch.manual_seed(1)
        bundle.save_transformer(root / "teacher", teacher)
        bundle.save_transformer(root / "trigflow", networks.embed_guidance(teacher))
        shutil.copytree(vae, root / "trigflow/vae")
        return cls(latents, root / "teacher", root / "trigflow")

    def job(self, root: Path, params: config.Distill, **changes: Any) -> job.Job:
        """A job whose outputs lie in `root`."""
        made = {
            "size": "tiny",
            "trigflow": self.trigflow,
            "teacher": self.teacher,
            "latents": self.latents,
            "checkpoints": root / "checkpoints",
            "grids": root / "grids",
            "curves": root / "curves.json",
            "params": params,
            "sampling": SAMPLING,
            "sigma_d": SIGMA_D,
            "key": "key",
            "recorder": None,
        }
        return job.Job(**(made | changes))


class Record:
    """What a run records in pictures, as bytes by name and step, and in words."""

    def __init__(self) -> None:
        self.pictures: dict[tuple[str, int | None], bytes] = {}
        self.texts: dict[str, str] = {}

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        pass

    def picture(self, image: Any, name: str, step: int | None = None) -> None:
        self.pictures[name, step] = image.tobytes()

    def text(self, content: str, name: str) -> None:
        self.texts[name] = content


def half(network: Any) -> dict[str, float]:
    """A quick score."""
    return {"1": 0.5}


def fit(made: job.Job) -> None:
    """Runs the job in this process, on one CPU worker."""
    attempts.fit(made, draws.Share(0, 1), lambda: {"accelerator": "cpu", "devices": 1})


def changed(params: config.Distill, **changes: Any) -> config.Distill:
    """Returns params with some values changed; a key a__b is b in the part a."""
    content = params.model_dump()
    for key, value in changes.items():
        *parts, last = key.split("__")
        section = content
        for part in parts:
            section = section[part]
        section[last] = value
    return config.Distill.model_validate(content)
