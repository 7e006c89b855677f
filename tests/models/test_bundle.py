"""The saved student is a stock SanaSprintPipeline: without our package it draws what our sampler draws."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sana_sprint import config
from sana_sprint.evaluation import generate
from sana_sprint.models import bundle

STOCK = """
import json, sys
from functools import partial
import numpy as np, torch
from diffusers import SanaSprintPipeline
folder, out = sys.argv[1], sys.argv[2]
how = json.load(open(folder + "/sampling.json"))
times = how["times"]
pipe = SanaSprintPipeline.from_pretrained(folder)
set_timesteps = pipe.scheduler.set_timesteps

def picture(steps, **lists):
    return pipe("a red circle", num_inference_steps=steps, guidance_scale=how["guidance"],
                height=how["height_px"], width=how["width_px"], use_resolution_binning=False,
                max_sequence_length=how["max_tokens"], complex_human_instruction=None,
                generator=torch.Generator().manual_seed(7), output_type="np", **lists).images[0]

pictures = {
    "1": picture(1, max_timesteps=times["1"][0], intermediate_timesteps=None),
    "2": picture(2, max_timesteps=times["2"][0], intermediate_timesteps=times["2"][1]),
}
# diffusers 0.42.1 forgets the step count when it hands a list of times to this scheduler
pipe.scheduler.set_timesteps = partial(set_timesteps, 4)
pictures["4"] = picture(4, timesteps=times["4"], max_timesteps=None, intermediate_timesteps=None)
assert not [m for m in sys.modules if m.startswith("sana_sprint")]
np.savez(out, **pictures)
"""


def our_pictures(folder: Path) -> dict[str, np.ndarray]:
    """Our sampler with the noises that the stock pipeline draws from one generator: the first latents, then one noise
    a step, of which the last is never used."""
    how = json.loads((folder / "sampling.json").read_text())
    sampling = config.Sampling(
        **{k: how[k] for k in ("height_px", "width_px", "guidance", "max_tokens", "instruction", "times")},
        teacher_guidance=1.0,
        teacher_steps=1,
        teacher_shift=1.0,
    )
    loaded = generate.load(folder, sampling, how["sigma_d"])
    out = {}
    for steps in ("1", "2", "4"):
        generator = torch.Generator().manual_seed(7)
        noises = [torch.randn(1, *loaded.latent_shape, generator=generator) for _ in range(int(steps))]
        out[steps] = loaded.student(["a red circle"], noises)[0]
    return out


def test_stock_pipeline_without_our_package_draws_the_same_pictures(sprint_folder, tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-c", STOCK, str(sprint_folder), str(tmp_path / "stock.npz")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    theirs = np.load(tmp_path / "stock.npz")
    for steps, ours in our_pictures(sprint_folder).items():
        assert np.abs(theirs[steps] * 255 - ours).max() <= 0.51, steps  # ours is rounded to uint8


def test_weights_that_do_not_fit_are_refused_by_name(sprint_folder, tmp_path):
    part = tmp_path / "model" / "transformer"
    part.mkdir(parents=True)
    source = sprint_folder / "transformer"
    settings = json.loads((source / "config.json").read_text()) | {"num_layers": 3}
    (part / "config.json").write_text(json.dumps(settings))
    (part / bundle.WEIGHTS).write_bytes((source / bundle.WEIGHTS).read_bytes())
    with pytest.raises(ValueError, match=r"model/transformer: weights do not fit config.json"):
        bundle.load_transformer(tmp_path / "model")


def test_a_cut_weights_file_is_refused_by_name(sprint_folder, tmp_path):
    part = tmp_path / "model" / "transformer"
    part.mkdir(parents=True)
    source = sprint_folder / "transformer"
    (part / "config.json").write_text((source / "config.json").read_text())
    (part / bundle.WEIGHTS).write_bytes((source / bundle.WEIGHTS).read_bytes()[:5000])
    with pytest.raises(ValueError, match=rf"{bundle.WEIGHTS}: broken safetensors file"):
        bundle.load_transformer(tmp_path / "model")
