"""Students and heads of LADD that learn at very different rates: the one that is left behind is told of."""

import pytest

from tests.training.small_job import changed, fit
from tests.training.test_health import of_one_pair, spoilt


def rivals(params, **changes):
    """Params of LADD alone, with a student and heads that learn at very different rates."""
    free = {"student__warmup_steps": 0, "student__decay_share": 0.0, "heads__misaligned_pairs": False}
    free |= {"health__sample_std_max": 1e6}  # without sCM nothing holds a student by its data
    return changed(params, recipe="ladd", iterations=60, health__returns_max=0, **(free | changes))


LOW = {
    "heads__norm": "layer",  # a norm over the batch hides what student and data differ in
    "heads__time": {"mean": -2.0, "std": 0.3},  # times at which samples differ most
    "health__accuracy": [0.3, 0.99],  # at these times tiny heads win for a while and lose again
}


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_heads_that_win_are_told_of(inputs, latents_folder, distill_params, tmp_path, norm):
    folder = spoilt(latents_folder, tmp_path / "latents", of_one_pair)  # unlike a fresh student's noise
    params = rivals(
        distill_params, student__lr=1e-6, heads__optimizer__lr=5e-2, heads__steps=3, heads__norm=norm,
        heads__time={"mean": -2.0, "std": 0.5},
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"the heads win: .* above 0.9 for 4 iterations .* lower distill.heads.opt"):
        fit(inputs.job(tmp_path, params, latents=folder))


def test_heads_that_lose_are_told_of(inputs, distill_params, tmp_path):
    params = rivals(distill_params, seed=1, student__lr=2e-2, heads__optimizer__lr=1e-6, **LOW)
    assert params.health.accuracy[0] == distill_params.health.accuracy[0]
    with pytest.raises(ValueError, match=r"the heads lose: .* below 0.3 for 4 iterations .* raise distill.heads.opt"):
        fit(inputs.job(tmp_path, params))


def test_a_student_that_draws_noise_is_told_of_by_the_deviation_of_its_latents(inputs, distill_params, tmp_path):
    """Heads that learn nothing let it follow their gradient out of the data."""
    params = rivals(distill_params, seed=1, student__lr=2e-3, heads__optimizer__lr=1e-6, **LOW)
    limits = {"health__sample_std_max": 4.0, "health__accuracy": [0.0, 1.0]}
    with pytest.raises(ValueError, match=r"latents stays above 4 for 4 iterations .* it draws noise; lower distill.st"):
        fit(inputs.job(tmp_path, changed(params, **limits)))


def test_heads_and_student_of_like_rates_are_well_at_the_same_limits(inputs, distill_params, tmp_path, capsys):
    made = inputs.job(tmp_path, rivals(distill_params, seed=1, **LOW))
    fit(made)
    assert made.finished()
    assert "only norm layer can tell" not in capsys.readouterr().out
