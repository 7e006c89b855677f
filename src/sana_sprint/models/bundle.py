"""Diffusers folders in and out: safetensors only, strict keys, stock classes.

A foundation or teacher is a stock SanaPipeline folder, a student a stock SanaSprintPipeline folder with
`sampling.json` beside it, which says how the model wants to be sampled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from sana_sprint import storage

if TYPE_CHECKING:
    from diffusers import AutoencoderDC, SanaTransformer2DModel

WEIGHTS = "diffusion_pytorch_model.safetensors"
FROZEN_PARTS = ("tokenizer", "text_encoder", "vae")


def load_transformer(folder: Path) -> SanaTransformer2DModel:
    """Returns the transformer of a diffusers folder, float weights as stored, every key matched. Raises ValueError
    that names the folder when files are missing, broken or do not fit their config."""
    from diffusers import SanaTransformer2DModel

    part = folder / "transformer"
    network = SanaTransformer2DModel.from_config(storage.read_json(part / "config.json"))
    try:
        network.load_state_dict(load_weights(part), strict=True)
    except RuntimeError as error:
        raise ValueError(f"{part}: weights do not fit config.json: {error}") from None
    return network.eval()


def load_weights(part: Path) -> dict[str, Any]:
    """Returns the tensors of a model part, from one file or from the shards that its index names."""
    index = part / f"{WEIGHTS}.index.json"
    names = sorted(set(storage.read_json(index)["weight_map"].values())) if index.exists() else [WEIGHTS]
    weights: dict[str, Any] = {}
    for name in names:
        if not (part / name).is_file():
            raise ValueError(f"{part / name}: no such file; only safetensors weights are read")
        try:
            weights |= load_file(part / name)
        except Exception as error:  # noqa: BLE001  safetensors raises its own class for a cut or foreign file
            raise ValueError(f"{part / name}: broken safetensors file ({error}); restore or remake it") from None
    return weights


def load_vae(folder: Path) -> AutoencoderDC:
    """Returns the DC-AE of a diffusers folder in evaluation mode."""
    from diffusers import AutoencoderDC

    if not (folder / "vae" / "config.json").is_file():
        raise ValueError(f"{folder / 'vae'}: no autoencoder there; run `dvc repro foundation`")
    return AutoencoderDC.from_pretrained(folder / "vae", local_files_only=True, use_safetensors=True).eval()


def load_frozen_parts(folder: Path) -> dict[str, Any]:
    """Returns tokenizer, text encoder and autoencoder of a diffusers folder, by pipeline argument name."""
    from transformers import AutoTokenizer, Gemma2Model

    return {
        "tokenizer": AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        "text_encoder": Gemma2Model.from_pretrained(
            folder / "text_encoder", local_files_only=True, use_safetensors=True
        ).eval(),
        "vae": load_vae(folder),
    }


def save_teacher(folder: Path, transformer: SanaTransformer2DModel, frozen: dict[str, Any], shift: float) -> None:
    """Writes a stock SanaPipeline folder with SANA's flow scheduler, whole or not at all."""
    from diffusers import DPMSolverMultistepScheduler, SanaPipeline

    scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift)
    with storage.whole_folder(folder) as unfinished:
        SanaPipeline(transformer=transformer, scheduler=scheduler, **frozen).save_pretrained(unfinished)


def save_student(
    folder: Path, transformer: SanaTransformer2DModel, frozen: dict[str, Any], sampling: dict[str, Any]
) -> None:
    """Writes a stock SanaSprintPipeline folder and sampling.json (with sigma_d), whole or not at all."""
    from diffusers import SanaSprintPipeline, SCMScheduler

    scheduler = SCMScheduler(prediction_type="trigflow", sigma_data=sampling["sigma_d"])
    with storage.whole_folder(folder) as unfinished:
        SanaSprintPipeline(transformer=transformer, scheduler=scheduler, **frozen).save_pretrained(unfinished)
        (unfinished / "sampling.json").write_text(json.dumps(sampling, indent=2, sort_keys=True) + "\n")


def save_transformer(folder: Path, transformer: SanaTransformer2DModel) -> None:
    """Writes <folder>/transformer alone, whole or not at all."""
    with storage.whole_folder(folder) as unfinished:
        transformer.save_pretrained(unfinished / "transformer")
