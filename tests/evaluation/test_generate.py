"""Pictures: independent of the batch, equal to the stock pipeline's, refused by name when a model is
missing."""

import dataclasses

import numpy as np
import pytest
import torch

from sana_sprint.data import manifest
from sana_sprint.evaluation import generate, protocol
from tests.evaluation.conftest import EVALUATE, SAMPLING


@pytest.fixture(scope="module")
def prompts(raw):
    return protocol.prompts(manifest.read(raw, "eval"), EVALUATE)[:7]


@pytest.fixture(scope="module")
def student(sprint_folder):
    return generate.load(sprint_folder, SAMPLING, 0.5)


@pytest.fixture(scope="module")
def teacher(teacher_folder):
    return generate.load(teacher_folder, SAMPLING, 0.5)


def close(a, b):
    return np.abs(a.astype(int) - b.astype(int)).max() <= 1  # rounding of equal floats up to their tolerance


@pytest.mark.parametrize("steps", protocol.STEPS)
def test_pictures_do_not_depend_on_the_batch(student, prompts, steps):
    by_batch = [generate.pictures(student, student.student, prompts, steps, 1, batch, "") for batch in (3, 7)]
    assert by_batch[0].shape == (7, 64, 64, 3)
    assert by_batch[0].dtype == np.uint8
    assert close(*by_batch)
    assert not close(by_batch[0][0], by_batch[0][1])


def test_the_teachers_pictures_do_not_depend_on_the_batch(teacher, prompts):
    by_batch = [generate.pictures(teacher, teacher.teacher, prompts, 1, 1, batch, "") for batch in (3, 7)]
    assert close(*by_batch)
    other = generate.pictures(teacher, teacher.teacher, prompts, 1, 2, 7, "")
    assert not close(by_batch[0], other)


@pytest.mark.parametrize("times", [[1.5708, 0.0], [1.5708, 1.3, 0.0], [1.5708, 1.1781, 0.7854, 0.3927, 0.0]])
def test_the_stock_pipeline_makes_the_same_picture(student, times):
    # the stock pipeline spaces 4 steps evenly and draws its noise from one generator, step after step
    steps = len(times) - 1
    random = torch.Generator().manual_seed(5)
    noises = [torch.randn((1, *student.latent_shape), generator=random) for _ in range(steps)]
    sampling = SAMPLING.model_copy(update={"times": {str(steps): times}})
    ours = dataclasses.replace(student, sampling=sampling).student(["a red circle"], noises)
    theirs = student.pipe(
        "a red circle",
        num_inference_steps=steps,
        max_timesteps=times[0],
        intermediate_timesteps=1.3 if steps == 2 else None,
        guidance_scale=SAMPLING.guidance,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(5),
        use_resolution_binning=False,
        max_sequence_length=SAMPLING.max_tokens,
        complex_human_instruction=None,
    ).images
    assert close(ours, np.asarray(theirs[0])[None])


def test_pixels_are_clamped_and_rounded():
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, 2 * 100.6 / 255 - 1]).reshape(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert generate.to_uint8(x)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 101]


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"model_index\.json"):
        generate.load(tmp_path / "student", SAMPLING, 0.5)


def test_a_folder_of_bfloat16_is_drawn_in_float32_as_the_protocol_says(sprint_folder, tmp_path):
    pipe = generate.load(sprint_folder, SAMPLING, 0.5).pipe.to(torch.bfloat16)
    pipe.save_pretrained(tmp_path / "half")
    loaded = generate.load(tmp_path / "half", SAMPLING, 0.5).pipe
    assert {p.dtype for part in generate.PARTS for p in getattr(loaded, part).parameters()} == {torch.float32}
