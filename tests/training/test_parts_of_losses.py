"""Each key of `distill` that weighs, times or leaves out a part of the losses does so for that part alone."""

import pytest
from test_distill import module
from test_recipes import seen

from tests.training.small_job import changed

ALL = {"student/scm", "student/ladd", "student/dmd", "heads/hinge", "fake_score/loss"}
LATE = {"mean": 1.0, "std": 0.5}


def losses(latents_folder, params, **changes) -> dict[str, float]:
    """The losses of both turns and what is watched, on the same draws for all params."""
    made = module(latents_folder, changed(params, recipe="sprint_dmd", **changes))
    of_turns = [made.student_losses(seen(latents_folder)), made.critics_losses(seen(latents_folder, turn=1))]
    return {name: value.item() for pair in of_turns for part in pair for name, value in part.items()}


@pytest.mark.parametrize(
    ("key", "loss"), [("scm_weight", "student/scm"), ("ladd_weight", "student/ladd"), ("dmd__weight", "student/dmd")]
)
def test_a_weight_multiplies_its_own_loss(latents_folder, distill_params, key, loss):
    one, four = (losses(latents_folder, distill_params, **{key: weight}) for weight in (0.5, 2.0))
    assert four[loss] == pytest.approx(4 * one[loss])
    assert one[loss] != 0
    assert {name for name in ALL if one[name] != four[name]} == {loss}


@pytest.mark.parametrize(
    ("key", "moved"),
    [
        ("heads__time", {"student/ladd", "heads/hinge"}),
        ("dmd__time", {"student/dmd", "fake_score/loss"}),
        ("time", ALL),  # the student's: where samples are drawn too
    ],
)
def test_times_move_the_losses_that_are_taken_at_them(latents_folder, distill_params, key, moved):
    as_it_is, late = losses(latents_folder, distill_params), losses(latents_folder, distill_params, **{key: LATE})
    assert {name for name in ALL if as_it_is[name] != late[name]} == moved


def test_pairs_that_are_left_out_are_not_judged(latents_folder, distill_params):
    all_pairs, own = (losses(latents_folder, distill_params, heads__misaligned_pairs=on) for on in (True, False))
    assert set(all_pairs) - set(own) == {"heads/misaligned"}
    assert all_pairs["heads/hinge"] != own["heads/hinge"]
    assert own["heads/fake"] == pytest.approx(all_pairs["heads/fake"], rel=1e-4)  # of passes of 16 and 24 rows


def test_every_network_has_the_optimizer_of_its_own_section(latents_folder, distill_params):
    own = {"student": 1e-3, "heads": 2e-3, "fake_score": 3e-3}
    sections = {"student": "student", "heads": "heads__optimizer", "fake_score": "dmd__optimizer"}
    changes = {f"{section}__lr": own[name] for name, section in sections.items()}
    changes |= {f"{section}__weight_decay": 10 * own[name] for name, section in sections.items()}
    made = module(latents_folder, changed(distill_params, recipe="sprint_dmd", **changes))
    for name, optimizer in zip(made.optimized, made.configure_optimizers(), strict=True):
        (group,) = optimizer.param_groups
        assert (group["lr"], group["weight_decay"]) == (own[name], pytest.approx(10 * own[name]))
        assert {id(p) for p in group["params"]} == {id(p) for p in getattr(made, name).parameters()}
