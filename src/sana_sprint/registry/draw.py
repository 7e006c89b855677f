"""Pictures from the console: which model is meant, and one picture of it, as the registered model draws
it.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sana_sprint import storage
from sana_sprint.registry import lineage, store, trust, versions

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient
    from PIL import Image

DEFAULT_SIZE = "base"
STUDENTS = Path("data/models/student")


def champion(server: MlflowClient, names: list[str], size: str | None) -> str | None:
    """Returns the URI of the champion among these models: of `size`, else of the default size, else of
    any.
    """
    wanted = [name for name in names if name.endswith(f"-{size or DEFAULT_SIZE}")]
    for name in wanted if size else [*wanted, *names]:
        if versions.version_of(server, name, versions.CHAMPION):
            return f"models:/{name}@{versions.CHAMPION}"
    return None


def folder_of(model: str | None, size: str | None) -> tuple[Path, str]:
    """Returns the pipeline folder of a model and what it is called. `model` is a folder or
    models:/name@alias; None means the newest student of `size`. Raises ValueError when there is none, and naming the
    files of it that must not be in a model.
    """
    if model is not None and model.startswith("models:/"):
        return _downloaded(model), model
    place = STUDENTS / (size or DEFAULT_SIZE)
    folder = lineage.repository() / place if model is None else Path(model)
    if not (folder / "model_index.json").is_file():
        remedy = "name a SanaSprintPipeline folder or models:/name@alias" if model else "run `dvc repro` first"
        raise ValueError(f"{folder}: no model_index.json there, so no model: {remedy}")
    trust.check_given(folder)
    return folder, model or str(place)


def _downloaded(uri: str) -> Path:
    """Returns the pipeline folder of a registered model; a local store is read in place."""
    server = store.client(store.tracking_uri())
    return versions.fetched(server, versions.resolve(server, uri)) / versions.PIPELINE


def _quiet() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def picture(folder: Path, prompt: str, steps: int, seed: int, guidance: float | None) -> Image.Image:
    """Returns the picture that the pipeline of `folder` makes of a prompt, the same as the registered model
    makes. Raises ValueError for a step count without a time list.
    """
    sampling = sampling_of(folder)
    times = sampling["times"].get(str(steps))
    if times is None:
        known = ", ".join(sorted(sampling["times"], key=int))
        raise ValueError(f"steps: this model has no time list for {steps} steps; it has: {known}")
    _quiet()
    import torch

    pipeline = loaded(folder)
    # diffusers 0.42 forgets the step count when it hands a time list to SCMScheduler
    pipeline.scheduler.set_timesteps = partial(pipeline.scheduler.set_timesteps, steps)
    images: list[Image.Image] = pipeline(
        prompt=prompt,
        num_inference_steps=steps,
        timesteps=times,
        max_timesteps=None,
        intermediate_timesteps=None,
        guidance_scale=sampling["guidance"] if guidance is None else guidance,
        height=sampling["height_px"],
        width=sampling["width_px"],
        generator=torch.Generator().manual_seed(seed),
        use_resolution_binning=False,
        clean_caption=False,
        max_sequence_length=sampling["max_tokens"],
        complex_human_instruction=sampling["instruction"] or None,
    ).images
    return images[0]


def sampling_of(folder: Path) -> dict[str, Any]:
    """Returns how a pipeline's folder wants to be sampled: its sampling.json, for a student of this repository with the
    times of its schedule once there are some; a registered folder holds them already."""
    sampling: dict[str, Any] = storage.read_json(folder / "sampling.json")
    schedule = folder.parent.parent / "schedule" / f"{folder.name}.json"
    if folder.parent.name == STUDENTS.name and schedule.is_file():
        sampling |= {"times": storage.read_json(schedule)["times"]}
    return sampling


def loaded(folder: Path) -> Any:
    """Returns the SanaSprintPipeline of a folder, on the accelerator if there is one, without a progress
    bar.
    """
    import torch
    from diffusers import SanaSprintPipeline

    load: Any = SanaSprintPipeline.from_pretrained
    pipeline = load(folder, local_files_only=True, use_safetensors=True)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
