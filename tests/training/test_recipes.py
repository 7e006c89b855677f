"""Each recipe trains the networks of its terms, in their turns and by their losses."""

import dataclasses
import math

import lightning as L
import pytest
import tiny
import torch
from test_distill import ONE, SIGMA_D, module, run
from torch import Tensor

from sana_sprint.config import RECIPES
from sana_sprint.data.loader import Latents
from sana_sprint.training import batches, distill, draws

STUDENT, BOTH, SCORE = {"student", "averaged"}, {"heads", "fake_score"}, {"fake_score"}
MOVES = {  # turn by turn, with one step of the heads and two of the fake score
    "sprint": [STUDENT, {"heads"}],
    "sprint_dmd": [STUDENT, BOTH, SCORE],
    "scm_dmd": [STUDENT, SCORE, SCORE],
    "ladd_dmd": [STUDENT, BOTH, SCORE],
    "scm": [STUDENT],
    "ladd": [STUDENT, {"heads"}],
    "dmd": [STUDENT, SCORE, SCORE],
}
LOSSES = {
    "scm": {"student/scm"},
    "ladd": {"student/ladd", "heads/hinge"},
    "dmd": {"student/dmd", "fake_score/loss"},
}


class Follow(L.Callback):
    """Takes down which networks each step has moved. Buffers do not count: the power iteration of the heads' spectral
    norm is no training."""

    def __init__(self, module: distill.Distillation) -> None:
        self.watched = {name: getattr(module, name) for name in module.networks} | {"teacher": module._teacher[0]}
        self.moves: list[set[str]] = []

    def weights(self) -> dict[str, list[Tensor]]:
        return {name: [w.detach().clone() for w in net.parameters()] for name, net in self.watched.items()}

    def on_train_batch_start(self, *_) -> None:
        self.before = self.weights()

    def on_train_batch_end(self, *_) -> None:
        after = self.weights()
        pairs = {name: zip(self.before[name], after[name], strict=True) for name in after}
        self.moves.append({name for name, both in pairs.items() if any(not torch.equal(b, a) for b, a in both)})


@pytest.fixture(scope="module", params=MOVES)
def trained(request, latents_folder, distill_params):
    """Two iterations of a recipe: its name, the moves of each step, the last metrics and the teacher."""
    steps = {"heads": 1, "dmd": 2}
    critics = {name: getattr(distill_params, name).model_copy(update={"steps": k}) for name, k in steps.items()}
    params = distill_params.model_copy(update={"recipe": request.param} | critics)
    made = module(latents_folder, params)
    follow = Follow(made)
    trainer = run(made, latents_folder, params, 0, 2 * len(MOVES[request.param]), [follow])
    return request.param, follow.moves, dict(trainer.callback_metrics), made._teacher[0]


def seen(latents_folder, iteration=10, turn=0):
    """Returns what a step sees: one batch at fixed draws."""
    batch = batches.Pairs(Latents(latents_folder, "train"), 8, 0, 1, ONE)[0]
    x_0, misaligned = batch["x_0"] * SIGMA_D, batch["misaligned"] * SIGMA_D
    return batches.Seen(x_0, misaligned, draws.text_of(batch), draws.Draws(0, 0, 8, ONE, "cpu"), iteration, turn)


def test_every_recipe_is_told_here():
    assert set(MOVES) == set(RECIPES)


def test_each_turn_moves_its_own_networks_and_never_the_teacher(trained):
    recipe, moves, _, teacher = trained
    assert moves == 2 * MOVES[recipe]
    assert all(p.grad is None for p in teacher.parameters())


def test_every_loss_of_the_terms_is_logged_by_its_name_and_finite(trained):
    recipe, _, metrics, _ = trained
    terms = recipe.replace("sprint", "scm_ladd").split("_")
    wanted = set().union(*(LOSSES[term] for term in terms))
    assert set().union(*LOSSES.values()) & set(metrics) == wanted
    assert all(math.isfinite(value) for value in metrics.values()), metrics


# --- sCM ------------------------------------------------------------------------------------------


def pull(latents_folder, params, **changes) -> tuple[float, Tensor]:
    """Returns the sCM loss and its gradient in the student's network, on the same draws for all params."""
    made = module(latents_folder, params.model_copy(update={"recipe": "scm", "log_variance": False} | changes))
    loss = made.student_losses(seen(latents_folder))[0]["student/scm"]
    grads = torch.autograd.grad(loss, list(made.student.transformer.parameters()), allow_unused=True)
    return loss.item(), torch.cat([g.flatten() for g in grads if g is not None])


@pytest.mark.parametrize("derivative", ["semi", "difference"])
def test_derivatives_by_differences_pull_as_the_exact_one(latents_folder, distill_params, derivative):
    loss, exact = pull(latents_folder, distill_params)
    near, by_difference = pull(latents_folder, distill_params, derivative=derivative)
    _, without = pull(latents_folder, distill_params, tangent_warmup_iterations=10**9)
    assert near == pytest.approx(loss, rel=1e-3)
    assert (by_difference - exact).norm() < 1e-3 * exact.norm()
    assert (without - exact).norm() > 0.05 * exact.norm(), "the derivative matters"


@pytest.mark.parametrize("learned", [True, False])
def test_log_variance_is_learned_only_if_it_is_asked_for(latents_folder, distill_params, learned):
    made = module(latents_folder, distill_params.model_copy(update={"recipe": "scm", "log_variance": learned}))
    losses, watched = made.student_losses(seen(latents_folder))
    losses["student/scm"].backward()
    assert all(p.grad.any() == learned for p in made.student.logvar.parameters())
    assert bool(watched["student/logvar"]) == learned


@pytest.mark.parametrize(("precision", "least", "most"), [("float32", 0.0, 0.0), ("network", 1e-4, 0.1)])
def test_under_autocast_the_derivative_has_the_precision_that_is_asked_for(
    latents_folder, distill_params, precision, least, most
):
    made = module(latents_folder, distill_params.model_copy(update={"tangent_precision": precision}))
    x, dxdt = SIGMA_D * tiny.latents(8), SIGMA_D * tiny.latents(8, seed=1)
    F = made.student.velocity(seen(latents_folder).text, torch.full((8,), 4.0))

    def derivative() -> Tensor:
        with torch.no_grad():
            return made.derivative(F, x, torch.full((8,), 0.8), dxdt)[1].float()

    exact = derivative()
    with torch.autocast("cpu", torch.bfloat16):
        error = (derivative() - exact).norm() / exact.norm()
    assert least <= error <= most


@pytest.mark.parametrize("precision", ["float32", "network"])
@pytest.mark.parametrize("recipe", ["sprint", "sprint_dmd"])
def test_under_autocast_every_weight_gets_the_gradient_that_float32_gives_it(
    latents_folder, distill_params, recipe, precision
):
    """Passes without a gradient, as the derivative's, leave no weight in autocast's cache that has lost its history."""
    made = module(latents_folder, distill_params.model_copy(update={"recipe": recipe, "tangent_precision": precision}))

    def gradients() -> dict[str, Tensor]:
        made.zero_grad()
        sum(made.student_losses(seen(latents_folder))[0].values()).backward()
        named = made.student.transformer.named_parameters()
        return {name: w.grad.clone() for name, w in named if w.grad is not None and w.grad.any()}

    exact = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = gradients()
    assert set(mixed) == set(exact)
    one, other = (torch.cat([found[name].flatten() for name in exact]) for found in (exact, mixed))
    assert torch.cosine_similarity(one, other, dim=0) > 0.95


def test_a_norm_that_counts_entries_weakens_the_constant_beside_it(latents_folder, distill_params):
    """|g| / sqrt(D) meets c where |g| did: the gradient is another one, in size too."""
    plain, by_size = (pull(latents_folder, distill_params, size_invariant_norm=on)[1] for on in (False, True))
    assert (plain / plain.norm() - by_size / by_size.norm()).norm() > 1e-3


@pytest.mark.parametrize("blocks", [[1], [0, 1]])
def test_there_is_a_head_per_block_that_is_named(latents_folder, distill_params, blocks):
    heads = distill_params.heads.model_copy(update={"blocks": blocks})
    made = module(latents_folder, distill_params.model_copy(update={"heads": heads}))
    here = seen(latents_folder)
    (logits,) = made.logits([here.x_0], here)
    tokens = (tiny.SIZE // made._teacher[0].config.patch_size) ** 2
    assert logits.shape == (8, len(blocks) * tokens)


# --- pairs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 4, 8])
def test_workers_judge_the_pairs_of_the_global_batch(latents_folder, world):
    latents = Latents(latents_folder, "train")

    def pairs(rank: int, world: int) -> dict[str, Tensor]:
        return batches.Pairs(latents, 8, 0, 5, draws.Share(rank, world))[3]

    whole, parts = pairs(0, 1), [pairs(rank, world) for rank in range(world)]
    for name in ("rows", "x_0", "misaligned", "embeds", "mask"):
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name]), name
    for i, picture in enumerate(whole["misaligned"]):
        assert [j for j, own in enumerate(whole["x_0"]) if torch.equal(own, picture)] not in ([], [i])


def test_a_global_batch_of_one_has_no_pair(latents_folder):
    batch = batches.Pairs(Latents(latents_folder, "train"), 1, 0, 1, ONE)[0]
    assert (len(batch["x_0"]), len(batch["misaligned"])) == (1, 0)


# --- the fake score -------------------------------------------------------------------------------


def dmd_module(latents_folder, params) -> distill.Distillation:
    return module(latents_folder, params.model_copy(update={"recipe": "dmd"}))


def test_the_gap_closes_where_the_student_is_the_unguided_teacher(latents_folder, distill_params):
    made = dmd_module(latents_folder, distill_params)  # the guidance embedder starts silent
    x_0 = SIGMA_D * tiny.latents(8)
    unguided, guided = (
        made.score_gap(x_0, seen(latents_folder), torch.full((8,), scale)).abs().mean() for scale in (1.0, 4.0)
    )
    assert unguided < 1e-4
    assert guided > 1e-2


@pytest.mark.parametrize("level", [1.0, -1.0])
def test_the_fake_score_learns_a_fixed_student_and_the_gap_leads_away_from_it(latents_folder, distill_params, level):
    made = dmd_module(latents_folder, distill_params)
    guidance_B = torch.full((8,), 3.0)
    fake = torch.full((8, tiny.CHANNELS, tiny.SIZE, tiny.SIZE), level)  # all this student ever draws
    here = seen(latents_folder, turn=1)

    def loss(step: int) -> Tensor:
        numbers = draws.Draws(1, step, 8, ONE, "cpu")
        return made.fake_score_loss(dataclasses.replace(here, numbers=numbers), fake, guidance_B)

    def error() -> float:
        with torch.no_grad():
            return sum(loss(step).item() for step in range(100, 110)) / 10

    before = error()
    optimizer = torch.optim.AdamW(made.fake_score.parameters(), lr=2e-3)
    for step in range(40):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
    assert error() < before / 4
    gap_B = made.score_gap(fake, seen(latents_folder), guidance_B).mean((1, 2, 3))
    assert (gap_B * level > 0.5).all(), "descent by the gap leaves what the fake score has learned"
