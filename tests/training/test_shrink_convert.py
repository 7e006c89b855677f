"""Cutting, healing and converting a network, on the smoke profile's own params."""

from pathlib import Path

import pytest
import tiny
import torch

from sana_sprint import config
from sana_sprint.data.loader import Latents
from sana_sprint.models import networks
from sana_sprint.models.networks import Text
from sana_sprint.training import convert, draws, flow, shrink

SMOKE = Path("profiles/smoke.yaml")


@pytest.fixture
def prune_params():
    return config.parse(config.Prune, "prune", SMOKE)


@pytest.fixture
def data(latents_folder):
    return Latents(latents_folder, "train")


def test_a_cut_has_the_size_asked_and_a_silent_guidance_embedder(prune_params, data):
    teacher = tiny.transformer(num_layers=3, num_attention_heads=4, cross_attention_head_dim=16, cross_attention_dim=32)
    size = config.Size(layers=2, heads=2, mlp_ratio=1.5)
    student, scores = shrink.cut(prune_params, size, teacher, data)
    assert (student.config.num_layers, student.config.num_attention_heads, student.config.mlp_ratio) == (2, 2, 1.5)
    assert len(scores) == 3
    x, s_B = torch.randn(3, tiny.CHANNELS, tiny.SIZE, tiny.SIZE), torch.full((3,), 0.5)
    low, high = (networks.flow_velocity(student, tiny.text(3), torch.full((3,), g))(x, s_B) for g in (1.0, 5.0))
    assert torch.equal(low, high)


@pytest.mark.gpu
def test_a_network_on_an_accelerator_is_cut_as_on_the_cpu(prune_params, data):
    size = config.Size(layers=1, heads=1, mlp_ratio=1.5)
    _, expected = shrink.cut(prune_params, size, tiny.transformer(), data)
    student, scores = shrink.cut(prune_params, size, tiny.transformer().cuda(), data)
    assert scores == pytest.approx(expected, rel=1e-3)
    assert student.config.num_attention_heads == 1


def test_a_size_larger_than_the_teacher_is_refused_by_its_numbers(prune_params, data):
    with pytest.raises(ValueError, match=r"prune.sizes: 9 layers and 2 heads do not fit into a teacher of 2 layers"):
        shrink.cut(prune_params, config.Size(layers=9, heads=2, mlp_ratio=2.0), tiny.transformer(), data)


def test_the_uncut_student_starts_at_the_teacher_and_healing_lowers_the_error(prune_params, data):
    """On guidance 1 the guided teacher is the teacher itself, so the uncut student's healing loss starts at zero."""
    teacher = tiny.transformer()
    params, null = prune_params.healing.model_copy(update={"steps": 40}), Text(*data.null)
    same = flow.Healing(networks.embed_guidance(teacher), teacher, null, params, 0, [1.0], 0.0)
    batch = draws.Batches(data, 16, 0, 1, draws.Share(0, 1))[0]

    def loss(module):
        numbers = draws.Draws(0, 0, 16, draws.Share(0, 1), "cpu")
        s_B, z = numbers.uniform(), numbers.normal(*batch["x_0"].shape[1:])
        return module.loss(batch, batch["x_0"], z, s_B, numbers)

    assert loss(same).item() < 1e-10
    student, _ = shrink.cut(prune_params, config.Size(layers=1, heads=2, mlp_ratio=2.0), teacher, data)
    module = flow.Healing(student, teacher, null, params, 0, [2.0, 3.0], 0.0)
    before = loss(module).item()
    flow.fit(module, draws.Batches(data, 16, 0, 40, draws.Share(0, 1)), 40, [], "heal")
    assert loss(module).item() < 0.9 * before


def test_conversion_is_lossless_and_fails_above_its_tolerance(data):
    params = config.parse(config.Convert, "convert", SMOKE)
    student = networks.embed_guidance(tiny.transformer())
    errors = convert.prove(params, student, data, 3.0, 0.5)
    assert errors["round_trip_error"] < 1e-12
    assert errors["sampling_error"] < 1e-4
    strict = params.model_copy(update={"sampling_tolerance": 1e-12})
    with pytest.raises(ValueError, match=r"convert.sampling_error is .* above 1e-12"):
        convert.prove(strict, student, data, 3.0, 0.5)
