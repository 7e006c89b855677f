"""Scores against closed forms and against scipy."""

import numpy as np
import pytest
import torch
from scipy import linalg

from sana_sprint.maths import metrics


def features(rows, columns, seed, shift=0.0):
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=random, dtype=torch.float64)
    return torch.randn(rows, columns, generator=random, dtype=torch.float64) @ mixing + shift


def test_frechet_of_equal_sets_is_zero():
    x = features(200, 12, 0)
    assert metrics.frechet(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_equals_scipys_matrix_root():
    x, y = features(300, 8, 1), features(250, 8, 2, shift=0.3)
    (m_x, c_x), (m_y, c_y) = ((a.mean(0).numpy(), np.cov(a.numpy(), rowvar=False)) for a in (x, y))
    theirs = ((m_x - m_y) ** 2).sum() + np.trace(c_x + c_y - 2 * linalg.sqrtm(c_x @ c_y).real)
    assert metrics.frechet(x, y) == pytest.approx(theirs, rel=1e-9)
    assert metrics.frechet(y, x) == pytest.approx(theirs, rel=1e-9)


def test_frechet_of_axis_aligned_gaussians_is_the_closed_form():
    # sum of (m_a - m_b)^2 + (s_a - s_b)^2 over the axes
    s_a, s_b = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([1.5, 0.3, 0.5]).double()
    m_a, m_b = torch.tensor([0.0, 1.0, -2.0]).double(), torch.tensor([0.5, 1.0, 1.0]).double()
    value = metrics.gaussian_frechet(m_a, s_a.diag(), m_b, s_b.square().diag())
    assert value == pytest.approx(float((m_a - m_b).square().sum() + (s_a - s_b).square().sum()), rel=1e-12)


@pytest.mark.parametrize("rows", [2, 10, 29, 30, 31])
def test_frechet_of_fewer_pictures_than_dimensions_is_that_of_their_covariance(rows):
    x, y = features(200, 30, 3), features(rows, 30, 4)
    (m_x, c_x), (m_y, c_y) = ((a.mean(0).numpy(), np.cov(a.numpy(), rowvar=False)) for a in (x, y))
    cross = np.sqrt(np.clip(np.linalg.eigvals(c_x @ c_y).real, 0, None)).sum()
    theirs = ((m_x - m_y) ** 2).sum() + np.trace(c_x + c_y) - 2 * cross
    assert metrics.frechet(x, y) == pytest.approx(theirs, rel=1e-6)
    assert metrics.frechet(y, y) == pytest.approx(0, abs=1e-6 * np.trace(c_y))


def test_the_jackknife_error_is_that_of_repeated_draws():
    reference = features(4000, 4, 5)
    random = torch.Generator().manual_seed(6)
    draws = [reference[torch.randperm(4000, generator=random)[:400]] + 0.4 for _ in range(60)]
    estimates = [metrics.frechet_estimate(reference, draw) for draw in draws]
    spread = float(torch.tensor([e.value for e in estimates]).std())
    error = float(torch.tensor([e.se for e in estimates]).mean())
    assert error == pytest.approx(spread, rel=0.35)


def test_estimates_are_the_same_twice():
    x, y = features(100, 6, 7), features(90, 6, 8)
    assert metrics.frechet_estimate(x, y) == metrics.frechet_estimate(x, y)


def test_clip_score_is_a_hundred_times_the_positive_cosine():
    images = torch.tensor([[2.0, 0.0], [1.0, 1.0], [1.0, 0.0], [-3.0, 0.0]])
    texts = torch.tensor([[5.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    score = metrics.clip_score(images, texts)
    expected = torch.tensor([100.0, 100 / 2**0.5, 0.0, 0.0]).double()
    assert score.value == pytest.approx(float(expected.mean()))
    assert score.se == pytest.approx(float(expected.std() / 2))


def test_mean_and_average_carry_their_errors():
    values = torch.tensor([1.0, 2.0, 4.0, 9.0])
    assert metrics.mean(values) == pytest.approx((4.0, values.double().std().item() / 2))
    parts = [metrics.Estimate(0.2, 0.03), metrics.Estimate(0.6, 0.04)]
    assert metrics.average(parts) == pytest.approx((0.4, 0.025))


@pytest.mark.parametrize(("successes", "trials"), [(30, 100), (0, 40), (40, 40)])
def test_a_proportion_has_the_binomial_error_and_never_none(successes, trials):
    estimate = metrics.proportion(successes, trials)
    p = successes / trials
    assert estimate.value == p
    assert estimate.se > 0
    assert estimate.se == pytest.approx((p * (1 - p) / trials) ** 0.5, abs=0.02)
