"""A tiny corpus of latents and the params of a tiny distillation."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from ruamel.yaml import YAML
from safetensors.torch import save_file

from sana_sprint import config
from tests.training import small_job


@pytest.fixture(scope="session")
def latents_folder(tmp_path_factory):
    """data/latents with 40 train and 16 eval pictures of 5 captions."""
    folder = tmp_path_factory.mktemp("latents")
    generator = torch.Generator().manual_seed(0)
    shards = []
    for split, count in (("train", 40), ("eval", 16)):
        x = torch.randn(count, tiny.CHANNELS, tiny.SIZE, tiny.SIZE, generator=generator)
        captions = torch.randint(1, 6, (count,), generator=generator)
        save_file({"latents": x, "captions": captions}, folder / f"{split}.safetensors")
        shards.append({"file": f"{split}.safetensors", "split": split, "count": count, "source_sha256": "0" * 64})
    text = tiny.text(6)
    mask = text.mask.clone()
    mask[:, 0] = 1
    save_file({"embeds": text.embeds, "mask": mask}, folder / "captions.safetensors")
    index = {
        "shards": shards,
        "captions_file": "captions.safetensors",
        "captions": ["", "a", "b", "c", "d", "e"],
        "scaling_factor": 1.0,
        "key": "0" * 12,
    }
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def distill_params():
    """The smoke profile's distill section, with a few iterations."""
    section = YAML(typ="safe").load(Path("profiles/smoke.yaml"))["distill"]
    section |= {"iterations": 6, "global_batch": 8, "checkpoint_every": 2, "tangent_warmup_iterations": 2}
    section["heads"]["blocks"] = [0, 1]
    return config.Distill.model_validate(section)


@pytest.fixture(scope="session")
def inputs(latents_folder, sprint_folder, tmp_path_factory):
    """What a tiny job reads."""
    return small_job.Inputs.make(
        tmp_path_factory.mktemp("inputs"), latents_folder, sprint_folder / "vae", tiny.transformer()
    )
