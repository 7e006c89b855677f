"""Cutting, healing and converting a network, on the smoke profile's own params."""

from pathlib import Path

import pytest
import tiny
import torch

from sana_sprint import config
from sana_sprint.data.loader import Latents
from sana_sprint.models import networks, prune
from sana_sprint.models.networks import Text
from sana_sprint.training import convert, draws, flow, shrink

SMOKE = Path("profiles/smoke.yaml")
SIZE = ("layers", "heads", "mlp_ratio")


@pytest.fixture
def prune_params():
    return config.parse(config.Prune, "prune", SMOKE)


def uncut(teacher):
    """The student with all of the teacher's blocks and channels."""
    channels = torch.arange(teacher.config.num_attention_heads * teacher.config.attention_head_dim)
    return prune.Cut(networks.embed_guidance(teacher), list(range(teacher.config.num_layers)), channels)


@pytest.fixture
def data(latents_folder):
    return Latents(latents_folder, "train")


def test_a_cut_has_the_size_asked_and_a_silent_guidance_embedder(prune_params, data):
    teacher = tiny.transformer(num_layers=3, num_attention_heads=4, cross_attention_head_dim=16, cross_attention_dim=32)
    size = config.Size(layers=2, heads=2, mlp_ratio=1.5)
    cut, scores = shrink.cut(prune_params, size, teacher, data)
    student = cut.network
    assert (student.config.num_layers, student.config.num_attention_heads, student.config.mlp_ratio) == (2, 2, 1.5)
    assert len(scores) == 3
    x, s_B = torch.randn(3, tiny.CHANNELS, tiny.SIZE, tiny.SIZE), torch.full((3,), 0.5)
    low, high = (networks.flow_velocity(student, tiny.text(3), torch.full((3,), g))(x, s_B) for g in (1.0, 5.0))
    assert torch.equal(low, high)


@pytest.mark.gpu
def test_a_network_on_an_accelerator_is_cut_as_on_the_cpu(prune_params, data):
    size = config.Size(layers=1, heads=1, mlp_ratio=1.5)
    _, expected = shrink.cut(prune_params, size, tiny.transformer(), data)
    cut, scores = shrink.cut(prune_params, size, tiny.transformer().cuda(), data)
    assert scores == pytest.approx(expected, rel=1e-3)
    assert cut.network.config.num_attention_heads == 1


def test_a_size_larger_than_the_teacher_is_refused_by_its_numbers(prune_params, data):
    with pytest.raises(ValueError, match=r"prune.sizes: 9 layers and 2 heads do not fit into a teacher of 2 layers"):
        shrink.cut(prune_params, config.Size(layers=9, heads=2, mlp_ratio=2.0), tiny.transformer(), data)


def loss(module, data):
    """The healing loss of 16 samples, times and noise that are always the same."""
    batch = draws.Batches(data, 16, 0, 1, draws.Share(0, 1))[0]
    numbers = draws.Draws(0, 0, 16, draws.Share(0, 1), "cpu")
    s_B, z = numbers.uniform(), numbers.normal(*batch["x_0"].shape[1:])
    return module.loss(draws.text_of(batch), batch["x_0"], z, s_B, numbers)


def healing(params, cut, teacher, data, **changes):
    steps = params.healing.model_copy(update={"steps": 40})
    params = params.model_copy(update={"healing": steps, "flow_share": 0.0} | changes)
    return flow.Healing(cut, teacher, Text(*data.null), params)


@pytest.mark.parametrize("feature_weight", [0.0, 1.0])
def test_the_uncut_student_starts_at_the_teacher_and_healing_lowers_the_error(prune_params, data, feature_weight):
    """On guidance 1 the guided teacher is the teacher itself, so the uncut student's healing loss starts at zero."""
    teacher = tiny.transformer(num_layers=3)
    same = healing(prune_params, uncut(teacher), teacher, data, guidance=[1.0], feature_weight=feature_weight)
    assert loss(same, data).item() < 1e-10
    cut, _ = shrink.cut(prune_params, config.Size(layers=2, heads=2, mlp_ratio=2.0), teacher, data)
    before, module, after = (
        healing(prune_params, cut, teacher, data, guidance=[2.0, 3.0], feature_weight=feature_weight) for _ in range(3)
    )
    start = loss(before, data).item()
    flow.fit(module, draws.Batches(data, 16, 0, 40, draws.Share(0, 1)), 40, [], "heal")
    assert loss(after, data).item() < 0.9 * start  # of the same network


def idle_in_the_middle():
    """A teacher of four blocks, of which a cut to two keeps the first and the last: the others do little."""
    teacher = tiny.transformer(num_layers=4)
    with torch.no_grad():
        for block in teacher.transformer_blocks[1:3]:
            for last in (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.conv_point):
                for weight in last.parameters():
                    weight.mul_(0.1)
    return teacher


@pytest.mark.parametrize("size", [(2, 2, 2.0), (2, 1, 1.5)], ids=["shallower", "narrower too"])
def test_the_feature_term_is_the_distance_of_each_block_to_the_teacher_s_block_that_it_stands_for(
    prune_params, data, size
):
    """Against block outputs that the test records itself, of the kept channels, relative to the teacher's."""
    teacher = idle_in_the_middle()
    cut, _ = shrink.cut(prune_params, config.Size(**dict(zip(SIZE, size, strict=True))), teacher, data)
    seen = {}
    blocks = {"teacher": teacher.transformer_blocks[2], "student": cut.network.transformer_blocks[0]}
    for name, block in blocks.items():
        block.register_forward_hook(lambda _module, _inputs, output, name=name: seen.__setitem__(name, output))
    output = loss(healing(prune_params, cut, teacher, data, feature_weight=0.0), data).item()
    both = loss(healing(prune_params, cut, teacher, data, feature_weight=10.0), data).item()
    embedded = [network.patch_embed.proj.weight for network in (cut.network, teacher)]
    assert embedded[0].equal(embedded[1][cut.channels])
    h, h_T = seen["student"], seen["teacher"][16:, :, cut.channels]  # the half without captions comes first
    assert both - output == pytest.approx(10 * ((h - h_T).square().mean() / h_T.square().mean()).item(), rel=1e-3)


def test_conversion_is_lossless_and_fails_above_its_tolerance(data):
    params = config.parse(config.Convert, "convert", SMOKE)
    student = networks.embed_guidance(tiny.transformer())
    errors = convert.prove(params, student, data, 3.0, 0.5)
    assert errors["round_trip_error"] < 1e-12
    assert errors["sampling_error"] < 1e-4
    strict = params.model_copy(update={"sampling_tolerance": 1e-12})
    with pytest.raises(ValueError, match=r"convert.sampling_error is .* above 1e-12"):
        convert.prove(strict, student, data, 3.0, 0.5)
