"""The experiment on the teacher's fine-tune compares what it says it compares."""

import importlib.util
import math
from pathlib import Path

import pytest
import tiny
import torch

from sana_sprint import config
from sana_sprint.data.loader import Latents
from sana_sprint.models import build, networks

SIGMA_D = 0.5


@pytest.fixture(scope="module")
def stability():
    spec = importlib.util.spec_from_file_location("stability", Path("pipelines/ablation/stability.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def teacher(stability):
    return stability.short(config.parse(config.Teacher, "teacher", Path("profiles/smoke.yaml")), 4)


@pytest.fixture(scope="module")
def base():
    return networks.reshaped(tiny.transformer(), qk_norm=None, timestep_scale=1.0)


def velocity(network, x, s_B, text):
    return networks.flow_velocity(network, text)(x, s_B)


@pytest.fixture(scope="module")
def seen(latents_folder):
    data = Latents(latents_folder, "train")
    rows = data.batch(0, 4, 0)
    return data.x[rows], torch.tensor([0.1, 0.4, 0.7, 0.9]), networks.Text(*data.text(rows))


def test_time_of_1000_t_without_qk_norm_is_the_base_model_itself(stability, base, seen):
    made = stability.variant(base, 1000, False).eval()
    torch.testing.assert_close(velocity(made, *seen), velocity(base.eval(), *seen), rtol=1e-4, atol=1e-5)


def test_t_with_qk_norm_is_the_teacher_that_the_stage_fine_tunes(stability, base, seen):
    made = stability.variant(base, 1, True).eval()
    assert velocity(made, *seen).equal(velocity(build.dense_time(base).eval(), *seen))


def test_the_time_embedding_moves_alone_at_first(stability, base, teacher, latents_folder):
    data, made = Latents(latents_folder, "train"), stability.variant(base, 1, True)
    before = {name: weight.clone() for name, weight in made.named_parameters()}
    _, curves = stability.fine_tuned(made, data, teacher, 4, "staged")
    moved = {name for name, weight in made.named_parameters() if not weight.equal(before[name])}
    assert moved == {name for name in before if name.startswith("time_embed.")}
    assert [step for step, _ in curves["loss"]] == [1, 2, 3, 4]
    stability.fine_tuned(made, data, teacher, 0, "together")
    assert not made.proj_out.weight.equal(before["proj_out.weight"])


def test_layers_that_join_meet_the_full_rate_or_a_warm_up_of_their_own(stability, base, teacher, latents_folder):
    """AdamW's first step is as long as the rate, for every weight."""
    data, moved = Latents(latents_folder, "train"), {}
    plain = teacher.flow.optimizer.model_copy(update={"warmup_steps": 2, "decay_share": 0.0, "weight_decay": 0.0})
    for warm in (False, True):
        made = stability.variant(base, 1, True)
        before = made.proj_out.weight.clone()
        stability.fine_tuned(made, data, stability.short(teacher, 3, plain), 2, "joined for a step", warm)
        moved[warm] = (made.proj_out.weight - before).abs().median().item()
    assert moved == pytest.approx({False: plain.lr, True: plain.lr / 2}, rel=1e-2)


def test_the_staged_fine_tune_stands_beside_that_of_all_layers_and_one_whose_join_is_warmed_up(
    stability, base, teacher, latents_folder
):
    curves = stability.staged(base, Latents(latents_folder, "train"), teacher, 4, [1, 4])
    assert list(curves) == [f"{name}, rate x {rate}" for rate in (1, 4) for name in stability.STAGED]
    first = {name: curves[f"{name}, rate x 4"]["loss"] for name in stability.STAGED}
    together, unwarmed, warmed = first.values()
    assert unwarmed[:3] == warmed[:3]  # two steps alone; the third loss is before the first joined step
    assert unwarmed[3] != warmed[3]
    assert together[1] != unwarmed[1]


def test_scm_from_each_teacher_leaves_its_gradient_norms(stability, base, teacher, latents_folder, distill_params):
    data, params = Latents(latents_folder, "train"), distill_params.model_copy(update={"recipe": "scm"})
    gradients = {}
    for time in (1, 1000):
        tuned, losses = stability.fine_tuned(stability.variant(base, time, True), data, teacher, 0, "tuned")
        gradients[str(time)] = stability.distilled(tuned, time, data, params, SIGMA_D, "scm")
    tangents = {name: curves["student/tangent_norm"][-1][1] for name, curves in gradients.items()}
    assert tangents["1000"] > 2 * tangents["1"]  # dF/dt grows with the factor on t
    said = stability.table(gradients, {"tuned": losses}, {"together": losses})
    assert "| tuned | " in said
    assert "| 1000 | " in said
    assert "| together | " in said


def test_a_fine_tune_that_diverges_is_told_in_its_curves_and_costs_no_other(stability, base, teacher, latents_folder):
    data = Latents(latents_folder, "train")
    wild = stability.short(teacher, 4, stability.constant(teacher.flow.optimizer, 1e9, math.inf))
    _, curves = stability.fine_tuned(stability.variant(base, 1, True), data, wild, 0, "wild")
    assert curves["loss"][-1][1] is None
    assert stability.values(curves, "loss")[-1] == math.inf
