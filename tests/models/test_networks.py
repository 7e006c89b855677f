"""Teacher and student around diffusers' SANA: exact at the start, differentiable, linear in attention."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import tiny
import torch
from diffusers import SanaTransformer2DModel
from diffusers.models.attention_processor import SanaLinearAttnProcessor2_0
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from sana_sprint.maths import forward, scm, trigflow
from sana_sprint.models import networks
from sana_sprint.models.networks import Student, Text

SIGMA = 0.5
TIMES = torch.tensor([0.2, 0.9, 1.5])
GUIDANCE = torch.tensor([2.0, 3.0, 4.5])


@contextmanager
def exact() -> Iterator[None]:
    """Runs diffusers in float64 with an attention kernel that has a forward-mode derivative."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), tiny.Float64():
        yield


def student(**config) -> Student:
    """Returns a student whose every weight is random, its guidance embedder included."""
    network = networks.embed_guidance(tiny.transformer(**config))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "guidance_embedder" in name:
                weight.add_(torch.randn_like(weight) * 0.1)
    return Student(network)


# --- the student's start --------------------------------------------------------------------------


def test_student_starts_as_the_teacher_bit_for_bit() -> None:
    teacher, text, x = tiny.transformer(), tiny.text(), tiny.latents()
    fresh = networks.embed_guidance(teacher)
    s = trigflow.flow_time(TIMES)
    with torch.no_grad():
        of_teacher = networks.flow_velocity(teacher, text)(x, s)
        for guidance in (GUIDANCE, 10 * GUIDANCE):
            assert torch.equal(networks.flow_velocity(fresh, text, guidance)(x, s), of_teacher)
        of_teacher = trigflow.from_flow(networks.flow_velocity(teacher, text))(x, TIMES)
        assert torch.equal(Student(fresh).velocity(text, GUIDANCE)(x, TIMES), of_teacher)


def test_student_keeps_the_shape_of_its_teacher() -> None:
    teacher = tiny.transformer(patch_size=2, num_layers=3, mlp_ratio=1.5)
    fresh = networks.embed_guidance(teacher)
    changed = {k for k in teacher.config if not k.startswith("_") and fresh.config[k] != teacher.config[k]}
    assert changed == {"guidance_embeds", "timestep_scale"}
    added = fresh.num_parameters() - teacher.num_parameters()
    assert added == sum(p.numel() for p in fresh.time_embed.guidance_embedder.parameters())


def test_a_network_of_the_base_model_s_time_makes_no_student() -> None:
    with pytest.raises(ValueError, match="timestep_scale"):
        networks.embed_guidance(tiny.transformer(timestep_scale=1.0))


def test_a_student_without_guidance_is_refused() -> None:
    with pytest.raises(ValueError, match="guidance_embeds"):
        Student(tiny.transformer())


# --- the guidance embedder ------------------------------------------------------------------------


def embedder_gradients(network: SanaTransformer2DModel) -> dict[str, float]:
    """Returns the gradient norms of the guidance embedder for a loss on the velocity, freshly computed."""
    network.zero_grad()
    v = networks.flow_velocity(network, tiny.text(), GUIDANCE)(tiny.latents(), TIMES / 2)
    v.square().mean().backward()
    parameters = network.time_embed.guidance_embedder.named_parameters()
    return {name: p.grad.norm().item() for name, p in parameters}


def test_guidance_embedder_learns_from_the_first_step_on() -> None:
    network = networks.embed_guidance(tiny.transformer())
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    at_start = embedder_gradients(network)
    assert at_start["linear_2.weight"] > 0
    assert at_start["linear_2.bias"] > 0
    optimizer.step()
    assert all(norm > 0 for norm in embedder_gradients(network).values())


def test_output_depends_on_guidance_after_one_update() -> None:
    network = networks.embed_guidance(tiny.transformer())
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    embedder_gradients(network)
    optimizer.step()
    x, text = tiny.latents(1).expand(2, -1, -1, -1), tiny.text(1).repeat(2)
    with torch.no_grad():
        low, high = networks.flow_velocity(network, text, torch.tensor([2.0, 4.0]))(x, TIMES[:2] * 0 + 0.5)
    assert (low - high).abs().max() > 1e-5


def test_an_embedder_of_zeros_would_never_learn_its_first_layer() -> None:
    network = networks.embed_guidance(tiny.transformer())
    torch.nn.init.zeros_(network.time_embed.guidance_embedder.linear_1.weight)
    norms = embedder_gradients(network)
    assert norms["linear_1.weight"] == norms["linear_2.weight"] == 0


def test_guidance_is_scaled_as_the_config_says() -> None:
    network, seen = student().transformer, []
    hook = network.time_embed.register_forward_pre_hook
    hook(lambda _module, _inputs, given: seen.append(given["guidance"]), with_kwargs=True)
    with torch.no_grad():
        networks.flow_velocity(network, tiny.text(), GUIDANCE)(tiny.latents(), TIMES / 2)
    assert_close(seen[0], GUIDANCE * 0.1)


# --- time -----------------------------------------------------------------------------------------


def test_time_scale_is_1_for_dense_time_and_1000_for_the_base_model() -> None:
    assert networks.time_scale(tiny.transformer(timestep_scale=1.0)) == 1000
    assert networks.time_scale(tiny.transformer(timestep_scale=0.001)) == 1
    assert networks.time_scale(student().transformer) == 1


def time_embedding(network: SanaTransformer2DModel, t: Tensor, autocast: bool) -> Tensor:
    extra = {"guidance": torch.full_like(t, 0.3)} if network.config.guidance_embeds else {}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return network.time_embed(t, hidden_dtype=torch.bfloat16 if autocast else t.dtype, **extra)[1]


@pytest.mark.parametrize("make", [tiny.transformer, lambda: student().transformer], ids=["teacher", "student"])
def test_time_embedding_stays_float32_under_autocast(make) -> None:
    t = torch.linspace(0.9, 1.0, 500)
    network = make()
    reference = time_embedding(network, t, autocast=False)
    coarse = time_embedding(network, t, autocast=True)
    networks.keep_float32(network)
    fine = time_embedding(network, t, autocast=True)
    assert fine.dtype == torch.float32
    assert torch.equal(fine, reference)
    assert (coarse - reference).abs().max() > 1e-3, "without it the embedding is the rounded one"
    assert len(fine.unique(dim=0)) > 2 * len(coarse.unique(dim=0))


def test_time_in_float32_holds_in_the_whole_network_and_changes_nothing_without_autocast() -> None:
    network, text, x = student().transformer, tiny.text(), tiny.latents()
    seen = []
    network.time_embed.linear.register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        plain = networks.flow_velocity(network, text, GUIDANCE)(x, TIMES / 2)
        networks.keep_float32(network)
        assert torch.equal(networks.flow_velocity(network, text, GUIDANCE)(x, TIMES / 2), plain)
        with torch.autocast("cpu", torch.bfloat16):
            networks.flow_velocity(network, text, GUIDANCE)(x, TIMES / 2)
    assert seen[2].dtype == torch.float32
    assert torch.equal(seen[2], seen[0])


def test_log_variance_keeps_float32_under_autocast() -> None:
    pupil, t, guidance = student(), torch.linspace(0.1, 1.5, 50), torch.full((50,), 4.0)
    networks.keep_float32(pupil.transformer)
    with torch.no_grad():
        pupil.logvar.bias.fill_(-10.0)
        plain = pupil.log_variance(t, guidance)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = pupil.log_variance(t, guidance)
    assert torch.equal(mixed, plain)
    assert len(plain.unique()) > 2 * len(plain.bfloat16().unique()), "bfloat16 would have told fewer times apart"


def test_time_in_float32_survives_a_copy_without_sharing_weights() -> None:
    network = student().transformer
    networks.keep_float32(network)
    twin = copy.deepcopy(network)
    t = torch.tensor([0.5])
    before = time_embedding(twin, t, autocast=False)
    with torch.no_grad():
        network.time_embed.timestep_embedder.linear_2.bias.add_(1)
    assert torch.equal(time_embedding(twin, t, autocast=False), before)
    with torch.no_grad():
        twin.time_embed.timestep_embedder.linear_2.bias.add_(1)
    assert not torch.equal(time_embedding(twin, t, autocast=False), before)


# --- derivatives of the whole student -------------------------------------------------------------


@pytest.mark.parametrize("patch", [1, 2])
def test_derivative_of_the_whole_student_equals_finite_differences(patch: int) -> None:
    pupil = student(patch_size=patch).double()
    text, x = tiny.double(tiny.text()), SIGMA * tiny.latents().double()
    t, dxdt, h = TIMES.double(), tiny.latents(seed=9).double(), 1e-5
    assert (text.mask == 0).any(), "masked words are part of the proof"
    with exact():
        F = pupil.velocity(text, GUIDANCE.double())
        F_minus, cos_sin_dF = scm.derivative(F, x, t, dxdt, SIGMA)
        assert_close(F_minus, F(x / SIGMA, t), atol=1e-12, rtol=0)
        dF = (F((x + h * dxdt) / SIGMA, t + h) - F((x - h * dxdt) / SIGMA, t - h)) / (2 * h)
    expected = trigflow.over(t.cos() * t.sin(), x) * dF
    assert expected.abs().max() > 0.01
    assert_close(cos_sin_dF, expected, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("patch", [1, 2])
def test_derivative_with_still_weights_is_pytorch_s_own(patch: int) -> None:
    pupil, x, dx = student(patch_size=patch), tiny.latents(), tiny.latents(seed=9)
    F = pupil.velocity(tiny.text(), GUIDANCE)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        expected = torch.func.jvp(F, (x, TIMES), (dx, TIMES))
        found = forward.jvp(F, (x, TIMES), (dx, TIMES))
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_derivative_in_float32_agrees_with_float64() -> None:
    pupil, text, x, dxdt = student(), tiny.text(), SIGMA * tiny.latents(), tiny.latents(seed=9)
    networks.keep_float32(pupil.transformer)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        single = scm.derivative(pupil.velocity(text, GUIDANCE), x, TIMES, dxdt, SIGMA)
    twin = Student(SanaTransformer2DModel.from_config(pupil.transformer.config))
    twin.load_state_dict(pupil.state_dict())
    twin.double()
    with exact():
        F = twin.velocity(tiny.double(text), GUIDANCE.double())
        double = scm.derivative(F, x.double(), TIMES.double(), dxdt.double(), SIGMA)
    assert_close(single[0].double(), double[0], atol=1e-4, rtol=1e-4)
    assert_close(single[1].double(), double[1], atol=1e-3, rtol=1e-3)


def test_student_starts_with_the_teacher_s_velocity_so_that_the_first_tangent_vanishes() -> None:
    teacher, text, x = tiny.transformer(), tiny.text(), SIGMA * tiny.latents()
    pupil = Student(networks.embed_guidance(teacher))
    null = Text(tiny.text(1, seed=8).embeds, tiny.text(1).mask)
    one = torch.ones(3)
    with torch.no_grad():
        dxdt = SIGMA * networks.guided_teacher(teacher, text, null, one)(x / SIGMA, TIMES)
        F_minus = pupil.velocity(text, one)(x / SIGMA, TIMES)
    g = scm.tangent(x, F_minus, torch.zeros_like(x), dxdt, TIMES, SIGMA, r=0.0)
    assert_close(g, torch.zeros_like(g), atol=1e-5, rtol=0)


# --- attention ------------------------------------------------------------------------------------


def test_self_attention_of_the_student_is_linear_everywhere() -> None:
    pupil = student(num_layers=4)
    processors = [block.attn1.processor for block in pupil.transformer.transformer_blocks]
    assert [type(p) for p in processors] == [SanaLinearAttnProcessor2_0] * 4


def test_self_attention_equals_the_relu_kernel_written_out() -> None:
    attention = student().transformer.transformer_blocks[0].attn1.double()
    tokens = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with exact():
        output = attention(tokens)
        q, k, v = (project(tokens) for project in (attention.to_q, attention.to_k, attention.to_v))
        q, k = (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * norm.weight
                for x, norm in ((q, attention.norm_q), (k, attention.norm_k)))  # fmt: skip
        q, k, v = (x.unflatten(2, (2, 8)).transpose(1, 2) for x in (q.relu(), k.relu(), v))
        scores = q @ k.transpose(2, 3)
        mixed = (scores / scores.sum(3, keepdim=True)) @ v
        expected = attention.to_out[0](mixed.transpose(1, 2).flatten(2))
    assert_close(output, expected, atol=1e-10, rtol=1e-10)


def test_self_attention_is_linear_in_its_values() -> None:
    attention = student().transformer.transformer_blocks[1].attn1.double()
    tokens = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    weight, bias = torch.randn(2, 16, 16, dtype=torch.float64), attention.to_out[0].bias

    def output(value_weight: Tensor) -> Tensor:
        attention.to_v.weight.copy_(value_weight)
        return attention(tokens) - bias

    with exact():
        if attention.to_v.bias is not None:
            attention.to_v.bias.zero_()
        combined = output(2 * weight[0] - 3 * weight[1])
        assert_close(combined, 2 * output(weight[0]) - 3 * output(weight[1]), atol=1e-10, rtol=1e-10)


def test_masked_words_never_reach_the_picture() -> None:
    pupil, text, x = student(), tiny.text(), tiny.latents()
    noise = torch.randn_like(text.embeds) * (1 - text.mask)[:, :, None]
    with torch.no_grad():
        clean = pupil.velocity(text, GUIDANCE)(x, TIMES)
        padded = pupil.velocity(Text(text.embeds + noise, text.mask), GUIDANCE)(x, TIMES)
        other = pupil.velocity(Text(text.embeds + 1, text.mask), GUIDANCE)(x, TIMES)
    assert torch.equal(clean, padded)
    assert not torch.allclose(clean, other, atol=1e-4)


# --- guidance of the teacher ----------------------------------------------------------------------


def test_guided_velocity_equals_two_separate_passes() -> None:
    teacher, text, x, s = tiny.transformer(), tiny.text(), tiny.latents(), TIMES / 2
    null = Text(tiny.text(1, seed=8).embeds, tiny.text(1).mask)
    with torch.no_grad():
        guided = networks.guided_velocity(teacher, text, null, GUIDANCE)(x, s)
        conditional = networks.flow_velocity(teacher, text)(x, s)
        unconditional = networks.flow_velocity(teacher, null.repeat(3))(x, s)
    scale = GUIDANCE[:, None, None, None]
    assert_close(guided, unconditional + scale * (conditional - unconditional), atol=1e-5, rtol=1e-5)


# --- log-variance and text ------------------------------------------------------------------------


def test_log_variance_depends_on_time_and_guidance_and_trains_the_linear_map() -> None:
    pupil = student()
    t = torch.tensor([0.3, 1.2, 0.3])
    logvar = pupil.log_variance(t, torch.tensor([2.0, 2.0, 4.0]))
    assert logvar.shape == (3,)
    assert len(logvar.unique()) == 3
    logvar.sum().backward()
    assert pupil.logvar.weight.grad.norm() > 0
    assert pupil.logvar.bias.item() == 0


def test_log_variance_sees_what_the_velocity_sees() -> None:
    pupil, seen = student(), []
    pupil.transformer.time_embed.register_forward_hook(lambda _m, _i, output: seen.append(output[1]))
    with torch.no_grad():
        pupil.velocity(tiny.text(), GUIDANCE)(tiny.latents(), TIMES)
        pupil.log_variance(TIMES, GUIDANCE)
    assert torch.equal(seen[0], seen[1])


def test_text_rows_repeat_and_join() -> None:
    text = tiny.text(3)
    assert len(text) == 3
    assert torch.equal(text[[2, 0]].embeds, text.embeds[[2, 0]])
    assert torch.equal(text[1:].mask, text.mask[1:])
    twice = text.repeat(2)
    both = networks.cat(text, text)
    assert torch.equal(twice.embeds, both.embeds)
    assert torch.equal(twice.mask, both.mask)
    assert len(text.to("cpu")) == 3
