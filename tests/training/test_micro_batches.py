"""SANA_SPRINT_MICRO_BATCH: the gradient of a step comes from several passes and is that of one."""

import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_shrink_convert import SMOKE
from torch.testing import assert_close

from sana_sprint import config, storage
from sana_sprint.data.loader import Latents
from sana_sprint.models import networks
from sana_sprint.models.networks import Text
from sana_sprint.training import attempts, draws, flow, health, shrink
from sana_sprint.training.batches import Seen
from tests.training.small_job import MACHINES, changed, fit

ALONE = draws.Share(0, 1)


@pytest.fixture
def data(latents_folder):
    return Latents(latents_folder, "train")


@pytest.mark.parametrize(("recipe", "heads_steps"), [("sprint", 1), ("sprint_dmd", 2)])
def test_a_distillation_in_passes_has_the_losses_and_weights_of_one_in_whole_batches(
    inputs, distill_params, tmp_path, monkeypatch, recipe, heads_steps
):
    params = changed(distill_params, recipe=recipe, heads__steps=heads_steps, heads__virtual_batch=2, log_every=1)
    jobs = []
    for rows in ("", "2"):
        monkeypatch.setenv(draws.MICRO_BATCH, rows)
        jobs.append(inputs.job(tmp_path / f"rows{rows}", params))
        fit(jobs[-1])
    whole, parts = (storage.read_json(made.curves) for made in jobs)
    assert set(whole) == set(parts)
    for name in set(whole) - MACHINES:
        assert_close(whole[name], parts[name], rtol=2e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")
    for network in ("student", "averaged", "heads"):  # with the vectors of the spectral norm
        assert_close(*(load_file(made.final / f"{network}.safetensors") for made in jobs), rtol=1e-2, atol=1e-3)


def stepped(inputs, params, step, watch=lambda module: None):
    """The module of a job after the passes of one step, with their gradient."""
    made = inputs.job(inputs.latents, params)
    module, batches, _ = attempts.pieces(made, ALONE, 0, health.Health(params, None))
    watch(module)
    module.manual_backward = lambda loss: loss.backward()
    batch, numbers = batches[step], draws.Draws(0, step, 8, ALONE, "cpu")
    module.gradient(Seen(batch["x_0"], batch["misaligned"], draws.text_of(batch), numbers, 0, step))
    return module


@pytest.mark.parametrize("step", [0, 1])
def test_no_pass_holds_more_rows_than_are_asked_for(inputs, distill_params, monkeypatch, step):
    """Counted where the rows enter a network: the guided teacher sees each row twice, the heads three sets of them."""
    monkeypatch.setenv(draws.MICRO_BATCH, "2")
    rows: list[int] = []

    def watch(module):
        for network in module.passing:
            network.patch_embed.register_forward_pre_hook(lambda _m, inputs: rows.append(len(inputs[0])))

    stepped(inputs, distill_params, step, watch)
    assert set(rows) == [{2, 4}, {2, 6}][step]


@pytest.mark.parametrize(("step", "network"), [(0, "student"), (1, "heads")])
def test_under_autocast_the_passes_add_up_to_the_gradient_of_one(inputs, distill_params, monkeypatch, step, network):
    """Autocast keeps rounded weights from pass to pass, whose way back to the weights must stay open."""
    found = []
    for rows in ("", "4"):
        monkeypatch.setenv(draws.MICRO_BATCH, rows)
        with torch.autocast("cpu", torch.bfloat16):
            module = stepped(inputs, changed(distill_params, heads__virtual_batch=4), step)
        weights = getattr(module, network).parameters()
        found.append(torch.cat([w.grad.flatten() for w in weights if w.grad is not None]))
    assert found[0].norm() > 0
    assert_close(found[0].norm(), found[1].norm(), rtol=0.02, atol=0)
    assert torch.cosine_similarity(*found, dim=0) > 0.999


def trained(data, steps=3, **changes):
    """The weights and the last loss of a flow training of some steps."""
    params = config.parse(config.Teacher, "teacher", SMOKE).flow.model_copy(update={"steps": steps, "batch": 8})
    module = flow.FlowTraining(tiny.transformer().train(), Text(*data.null), params, 0)
    losses = []
    module.log = lambda name, value: losses.append((name, value.item()))
    flow.fit(module, draws.Batches(data, 8, 0, steps, ALONE), steps, [], "teacher", **changes)
    return losses, module.transformer.state_dict()


def test_a_flow_training_in_passes_is_one_in_whole_batches(data, monkeypatch):
    losses, weights = trained(data)
    monkeypatch.setenv(draws.MICRO_BATCH, "2")
    others, other_weights = trained(data)
    assert [name for name, _ in losses] == [name for name, _ in others] == ["loss", "grad_norm"] * 3
    assert_close([value for _, value in losses], [value for _, value in others], rtol=1e-4, atol=1e-5)
    assert_close(weights, other_weights, rtol=1e-3, atol=1e-4)


def test_healing_in_passes_pulls_as_a_whole_batch_does(data, monkeypatch):
    """Shares of flow and guided targets and the guidance scales are those of the whole batch."""
    params = config.parse(config.Prune, "prune", SMOKE).model_copy(update={"flow_share": 0.5})
    teacher, found = tiny.transformer(), []
    for rows in ("", "2"):
        monkeypatch.setenv(draws.MICRO_BATCH, rows)
        cut, _ = shrink.cut(params, config.Size(layers=1, heads=2, mlp_ratio=2.0), teacher, data)
        module = flow.Healing(cut, tiny.transformer(), Text(*data.null), params)
        flow.fit(module, draws.Batches(data, 8, 0, 2, ALONE), 2, [], "heal")
        found.append(module.transformer.state_dict())
    assert_close(*found, rtol=1e-3, atol=1e-4)


def test_calibration_in_passes_scores_and_pulls_as_all_samples_at_once(data, monkeypatch):
    params, found = config.parse(config.Prune, "prune", SMOKE), []
    for rows in ("", "4"):
        monkeypatch.setenv(draws.MICRO_BATCH, rows)
        network = tiny.transformer()
        losses = [*shrink.calibrate(params, network, data)]
        sum(losses).backward()
        found.append({name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None})
        assert len(losses) == (params.calibration_samples // 4 if rows else 1)
    assert_close(*found, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("chosen", ["0", "-1", "two"])
def test_a_micro_batch_that_cannot_be_is_named(monkeypatch, chosen):
    monkeypatch.setenv(draws.MICRO_BATCH, chosen)
    with pytest.raises(ValueError, match=rf"^SANA_SPRINT_MICRO_BATCH={chosen}: must be a positive number of rows$"):
        draws.passes_of(8)


@pytest.mark.parametrize(("rows", "most", "passes"), [(8, 3, 4), (8, 8, 1), (8, 100, 1), (100, 8, 20), (1, 4, 1)])
def test_passes_are_equal_and_as_large_as_is_allowed(monkeypatch, rows, most, passes):
    monkeypatch.setenv(draws.MICRO_BATCH, str(most))
    assert draws.passes_of(rows) == passes


def test_parts_of_the_draws_are_the_draws(data):
    whole, parts = (
        draws.Draws(3, 5, 8, draws.Share(1, 2), "cpu"),
        draws.Draws(3, 5, 8, draws.Share(1, 2), "cpu").parts(2),
    )
    calls = [lambda d: d.normal(2), lambda d: d.uniform(), lambda d: d.choice([1.0, 2.0, 3.0]), lambda d: d.normal()]
    once = [call(whole) for call in calls]
    twice = [[call(part) for call in calls] for part in parts]
    for index, wanted in enumerate(once):
        assert torch.equal(torch.cat([of_part[index] for of_part in twice]), wanted)


def test_the_teacher_s_fine_tune_embeds_time_in_float32_under_autocast(data):
    seen = []
    network = tiny.transformer().train()
    params = config.parse(config.Teacher, "teacher", SMOKE).flow.model_copy(update={"steps": 1, "batch": 8})
    module = flow.FlowTraining(network, Text(*data.null), params, 0)
    network.time_embed.register_forward_hook(lambda _m, _i, output: seen.append(output[1].dtype))
    flow.fit(module, draws.Batches(data, 8, 0, 1, ALONE), 1, [], "teacher", "bf16-mixed")
    assert seen == [torch.float32]
    assert networks.time_scale(network) == 1
