"""Compiled blocks and activations that are computed again leave losses, gradients and checkpoints as they are."""

import functools
import re

import pytest
import tiny
import torch
from test_distill import ONE, module
from test_recipes import seen
from torch.testing import assert_close

from sana_sprint import config
from sana_sprint.models import build, bundle, networks, passes
from sana_sprint.training import attempts, checkpoints, job, sharding, shrink, teacher
from tests.training.small_job import SAMPLING
from tests.training.test_shrink_convert import SMOKE, data, prune_params, uncut  # noqa: F401  fixtures

RECIPES = ["sprint", "sprint_dmd"]
FLOAT32 = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture
def fresh():
    """Forgets what other tests have compiled."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    passes._compiled.cache_clear()
    yield
    passes._compiled.cache_clear()


@pytest.fixture
def traced(fresh, monkeypatch):
    """Compiles to a program of torch's own operations, which is quick to make: no C++."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(passes, "hindrance", str)


@pytest.fixture
def group():
    """A group of workers that has this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def switch(patch, *on):
    for name in passes.SWITCHES:
        patch.setenv(name, str(int(name in on)))


def arranged(patch, made, *on):
    switch(patch, *on)
    passes.arrange(*made.passing)
    return made


def graphs() -> int:
    """How many programs torch has compiled."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def step(made, latents_folder, turn):
    """The losses of a turn and the gradients of the networks that it moves."""
    moved = made.params.critics(turn) if turn else ["student"]
    for name in made.optimized:
        getattr(made, name).requires_grad_(name in moved)
    losses, _ = (made.critics_losses if turn else made.student_losses)(seen(latents_folder, turn=turn))
    sum(losses.values()).backward()
    weights = {f"{name}.{key}": w for name in moved for key, w in getattr(made, name).named_parameters()}
    grads = {key: sharding.whole(w.grad) for key, w in weights.items() if w.grad is not None}
    assert len(grads) > 10
    return losses, grads


def of_recipe(params, recipe):
    return params.model_copy(update={"recipe": recipe})


# --- compiled -------------------------------------------------------------------------------------


def test_a_compiled_step_has_the_losses_and_gradients_of_one_as_written(
    fresh, latents_folder, distill_params, monkeypatch
):
    params = of_recipe(distill_params, "scm")  # the other passes are traced below: C++ takes 15 s for each
    plain, made = (module(latents_folder, params) for _ in range(2))
    if passes.hindrance():  # a machine that cannot compile says so
        with pytest.raises(ValueError, match=re.escape(passes.hindrance())):
            arranged(monkeypatch, made, passes.COMPILE)
        return
    arranged(monkeypatch, made, passes.COMPILE)
    assert_close(step(made, latents_folder, 0), step(plain, latents_folder, 0), **FLOAT32)
    assert graphs() == 2  # the guided teacher and the student, whose blocks share it


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_turn_of_traced_networks_has_the_gradients_of_those_as_written(
    traced, latents_folder, distill_params, monkeypatch, recipe
):
    params = of_recipe(distill_params, recipe)
    plain, made = (module(latents_folder, params) for _ in range(2))
    arranged(monkeypatch, made, passes.COMPILE)
    for turn in range(params.turns):
        assert_close(step(made, latents_folder, turn), step(plain, latents_folder, turn), **FLOAT32)
    before = graphs()
    for turn in range(params.turns):
        step(made, latents_folder, turn)
    assert 3 <= before == graphs() <= 8  # torch compiles no more than 8


def test_sharded_networks_with_both_switches_have_the_gradients_of_whole_ones(
    traced, group, latents_folder, distill_params, monkeypatch
):
    params = of_recipe(distill_params, "sprint_dmd")
    plain, made = (module(latents_folder, params) for _ in range(2))
    arranged(monkeypatch, made, *passes.SWITCHES)
    sharding.shard(made, group)
    for turn in range(params.turns):
        assert_close(step(made, latents_folder, turn), step(plain, latents_folder, turn), **FLOAT32)
    assert 3 <= graphs() <= 8


def test_a_run_goes_on_from_checkpoints_of_the_other_kind(traced, group, inputs, distill_params, tmp_path, monkeypatch):
    def done(name: str, strategy: str, *on: str) -> job.Job:
        switch(monkeypatch, *on)
        made = inputs.job(tmp_path / name, distill_params)
        attempts.fit(made, ONE, lambda: {"accelerator": "cpu", "devices": 1, "strategy": strategy})
        return made

    plain = done("plain", "auto")
    assert not graphs()
    compiled = done("run", "ddp_find_unused_parameters_true", passes.COMPILE)  # as Ray's workers are
    assert graphs()
    expected = job.averaged(plain.final, plain.trigflow).state_dict()
    assert_close(job.averaged(compiled.final, compiled.trigflow).state_dict(), expected, rtol=1e-3, atol=1e-5)
    checkpoints.forget_after(compiled.checkpoints, 2)
    assert not compiled.finished()
    again = done("run", "auto")
    assert_close(job.averaged(again.final, again.trigflow).state_dict(), expected, rtol=1e-3, atol=1e-5)


# --- activations computed again -------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_checkpointing_leaves_losses_and_gradients_of_every_turn_to_the_bit(
    latents_folder, distill_params, monkeypatch, recipe
):
    params = of_recipe(distill_params, recipe)
    plain, made = (module(latents_folder, params) for _ in range(2))
    arranged(monkeypatch, made, passes.CHECKPOINTING)
    for turn in range(params.turns):
        assert_close(step(made, latents_folder, turn), step(plain, latents_folder, turn), rtol=0, atol=0)


@pytest.fixture
def recomputed(monkeypatch):
    """The calls of torch's checkpointing so far."""
    calls = []
    within = torch.utils.checkpoint.checkpoint

    def counted(*args, **kwargs):
        calls.append(args[0])
        return within(*args, **kwargs)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", counted)
    return calls


def kept_bytes(made, latents_folder) -> int:
    """The bytes that the student's losses keep for their backward pass, weights apart."""
    weights = {w.untyped_storage().data_ptr() for network in (made, made.teacher) for w in network.parameters()}
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        losses, _ = made.student_losses(seen(latents_folder))
    assert all(loss.requires_grad for loss in losses.values())
    return sum(storage.nbytes() for place, storage in kept.items() if place not in weights)


def test_checkpointing_keeps_less_for_the_backward_pass(latents_folder, distill_params, monkeypatch, recomputed):
    plain, made = (module(latents_folder, distill_params) for _ in range(2))
    arranged(monkeypatch, made, passes.CHECKPOINTING)
    assert kept_bytes(made, latents_folder) < 0.5 * kept_bytes(plain, latents_folder)
    blocks = {id(call.__self__) for call in recomputed}
    assert blocks == {id(b) for net in (made.teacher, made.student.transformer) for b in net.transformer_blocks}


# --- the stages before ----------------------------------------------------------------------------


def weights_of(network):
    return {name: weight.clone() for name, weight in network.state_dict().items()}


@pytest.mark.parametrize("feature_weight", [0.0, 1.0])
def test_healing_is_the_same_with_either_switch(
    traced,
    recomputed,
    prune_params,  # noqa: F811
    data,  # noqa: F811
    tmp_path,
    monkeypatch,
    feature_weight,
):
    bundle.save_transformer(tmp_path, tiny.transformer())
    few = prune_params.healing.model_copy(update={"steps": 4, "batch": 8})
    params = prune_params.model_copy(update={"healing": few, "feature_weight": feature_weight})

    def healed(*on):
        switch(monkeypatch, *on)
        return weights_of(shrink.heal(params, "small", uncut(tiny.transformer()), tmp_path, data, []))

    plain = healed()
    assert not graphs()
    assert not recomputed
    assert_close(healed(passes.CHECKPOINTING), plain, rtol=0, atol=0)
    assert recomputed
    assert_close(healed(passes.COMPILE), plain, **FLOAT32)
    assert graphs()


def test_a_fine_tune_is_the_same_with_either_switch(traced, recomputed, latents_folder, tmp_path, monkeypatch):
    base = networks.reshaped(tiny.transformer(), qk_norm=None, timestep_scale=1.0)
    params = config.parse(config.Teacher, "teacher", SMOKE)
    params = params.model_copy(update={"flow": params.flow.model_copy(update={"steps": 4, "batch": 8})})
    saved = []
    monkeypatch.setattr(bundle, "load_frozen_parts", lambda _: {})
    monkeypatch.setattr(bundle, "save_teacher", lambda _folder, network, *_: saved.append(weights_of(network)))
    for on in ((), (passes.CHECKPOINTING,), (passes.COMPILE,)):
        switch(monkeypatch, *on)
        teacher.fine_tune(params, SAMPLING, build.dense_time(base), tmp_path, latents_folder, tmp_path, [])
    plain, checkpointed, compiled = saved
    assert_close(checkpointed, plain, rtol=0, atol=0)
    assert_close(compiled, plain, **FLOAT32)
    assert recomputed
    assert graphs()
