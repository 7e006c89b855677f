"""Distances between feature sets against double loops, and their standard errors (the module comes from below)."""

from types import ModuleType

import numpy as np
import pytest
import torch

from sana_sprint.maths import distances as ours
from sana_sprint.maths import metrics


@pytest.fixture(name="distances")
def module() -> ModuleType:
    """The module, as conftest.py has the others, so that the tests also judge copies with a planted fault."""
    return ours


def features(rows: int, columns: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def looped(kernel, x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased squared MMD, pair by pair."""
    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(kernel(a, b) for a in x for b in y) / (n * m)
    return xx + yy - 2 * xy


def brute(reference: np.ndarray, generated: np.ndarray, neighbours: int) -> tuple[float, float]:
    """Precision and recall, point by point."""

    def share(manifold: np.ndarray, points: np.ndarray) -> float:
        radii = [
            sorted(np.linalg.norm(p - q) for j, q in enumerate(manifold) if j != i) for i, p in enumerate(manifold)
        ]
        balls = list(zip(manifold, [r[neighbours - 1] for r in radii], strict=True))
        return np.mean([any(np.linalg.norm(p - q) <= r for q, r in balls) for p in points])

    return share(reference, generated), share(generated, reference)


def test_kid_is_the_unbiased_mmd_of_the_cubic_kernel(distances: ModuleType) -> None:
    x, y = features(9, 4, 0), features(6, 4, 1, shift=0.5)
    expected = looped(lambda a, b: (a @ b / 4 + 1) ** 3, x.numpy(), y.numpy())
    assert distances.kid(x, y) == pytest.approx(expected, rel=1e-10)
    assert distances.kid(y, x) == pytest.approx(expected, rel=1e-10)


def test_cmmd_is_a_thousand_times_the_unbiased_mmd_of_the_wide_gaussian(distances: ModuleType) -> None:
    x, y = features(9, 4, 2), 3 * features(6, 4, 3, shift=0.5)
    unit_x, unit_y = (a.numpy() / np.linalg.norm(a.numpy(), axis=1)[:, None] for a in (x, y))
    expected = 1000 * looped(lambda a, b: np.exp(-((a - b) ** 2).sum() / (2 * 10**2)), unit_x, unit_y)
    assert distances.cmmd(x, y) == pytest.approx(expected, rel=1e-8)
    assert distances.cmmd(7 * x, y / 5) == pytest.approx(expected, rel=1e-8)


def test_kernel_distances_of_one_distribution_are_zero_on_average(distances: ModuleType) -> None:
    # a kept diagonal would add (1/5 + 1/7) (E k(x, x) - E k(x, x')), by hand for these normals
    for score, diagonal in ((distances.kid, 3.7), (distances.cmmd, 3.4)):
        found = metrics.mean(torch.tensor([score(features(5, 3, s), features(7, 3, 1000 + s)) for s in range(400)]))
        assert abs(found.value) < 4 * found.se
        assert diagonal > 8 * found.se


def test_tiles_change_nothing(distances: ModuleType) -> None:
    x, y = features(23, 5, 4).float(), features(17, 5, 5, shift=0.4).float()
    whole = distances.kid(x, y), distances.cmmd(x, y), *distances.precision_recall(x, y, 3)
    for block in (1, 4, 17):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distances, "BLOCK", block)
            tiled = distances.kid(x, y), distances.cmmd(x, y), *distances.precision_recall(x, y, 3)
        assert tiled == pytest.approx(whole, rel=1e-9)


def test_single_precision_features_are_computed_in_double(distances: ModuleType) -> None:
    x, y = features(40, 6, 6).float(), features(30, 6, 7).float()
    for score in (distances.kid, distances.cmmd):
        assert score(x, y) == score(x.double(), y.double())


def test_precision_and_recall_are_those_of_brute_force(distances: ModuleType) -> None:
    for seed, neighbours in ((8, 1), (9, 2), (10, 3), (11, 5)):
        x, y = features(30, 2, seed), 0.6 * features(25, 2, seed + 50) + torch.tensor([0.8, 0.0])
        expected = brute(x.numpy(), y.numpy(), neighbours)
        assert distances.precision_recall(x, y, neighbours) == pytest.approx(expected)
        assert expected[0] != expected[1]
        assert 0 < expected[1] < 1


def test_precision_and_recall_of_equal_and_of_distant_sets(distances: ModuleType) -> None:
    x = features(40, 8, 12) + 1000
    assert distances.precision_recall(x, x.clone(), 3) == (1.0, 1.0)
    assert distances.precision_recall(x, x.flip(0), 3) == (1.0, 1.0)
    assert distances.precision_recall(x, x + 1000, 3) == (0.0, 0.0)


def test_copies_of_a_picture_cover_it_whatever_the_rounding(distances: ModuleType) -> None:
    for columns in (8, 37, 100, 513):
        for shift in (0, 10, 1000):
            x = features(10, columns, columns, shift)
            assert distances.precision_recall(x.repeat(4, 1), x, 3) == (1.0, 1.0)  # the radii are 0


def test_one_mode_of_two_is_precise_and_recalls_its_own(distances: ModuleType) -> None:
    left, right = features(30, 3, 13), features(30, 3, 14, shift=50)
    both = torch.cat([left, right])
    assert distances.precision_recall(both, left, 3) == (1.0, 0.5)
    assert distances.precision_recall(left, both, 3) == (0.5, 1.0)


def test_a_ball_reaches_to_its_kth_neighbour_and_no_farther(distances: ModuleType) -> None:
    # 0, 1, 3, 7: the second neighbours are at 3, 2, 3 and 6, so that the balls end at -3 and 13
    reference = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    generated = torch.tensor([[-3.0], [-3.01], [13.0], [13.01]])
    assert distances.precision_recall(reference, generated, 2)[0] == 0.5


@pytest.mark.parametrize("score", [ours.kid, ours.cmmd, lambda x, y: ours.precision_recall(x, y, 3)])
def test_unequal_dimensions_are_refused_with_both(score) -> None:
    with pytest.raises(ValueError, match="reference features have 5 dimensions and generated ones 4"):
        score(features(9, 5, 0), features(9, 4, 0))


@pytest.mark.parametrize("score", [ours.kid, ours.cmmd])
def test_a_lone_picture_is_refused(score) -> None:
    with pytest.raises(ValueError, match="1 generated pictures: at least 2"):
        score(features(9, 5, 0), features(1, 5, 0))
    with pytest.raises(ValueError, match="0 reference pictures: at least 2"):
        score(features(0, 5, 0), features(9, 5, 0))
    assert score(features(2, 5, 0), features(2, 5, 1)) != 0


def test_no_more_pictures_than_neighbours_are_refused() -> None:
    with pytest.raises(ValueError, match="3 reference pictures: at least 4"):
        ours.precision_recall(features(3, 5, 0), features(9, 5, 0), 3)
    with pytest.raises(ValueError, match="3 generated pictures: at least 4"):
        ours.precision_recall(features(9, 5, 0), features(3, 5, 0), 3)
    with pytest.raises(ValueError, match="0 neighbours"):
        ours.precision_recall(features(9, 5, 0), features(9, 5, 0), 0)


def test_the_jackknife_of_a_mean_is_the_textbook_error() -> None:
    x = features(30, 1, 15)
    one_by_one = metrics.jackknife(lambda rows: float(rows.mean()), x, groups=30)
    assert one_by_one == pytest.approx((float(x.mean()), float(x.std() / 30**0.5)), rel=1e-5)
    # of equal groups, that of the mean of their means
    grouped = metrics.jackknife(lambda rows: float(rows.mean()), x, groups=10)
    means = torch.stack([x[g::10].mean() for g in range(10)])
    assert grouped.se == pytest.approx(float(means.std() / 10**0.5), rel=1e-5)


def test_the_jackknife_of_frechet_is_the_estimate_that_it_was() -> None:
    x, y = features(60, 4, 16), features(43, 4, 17, shift=0.2)
    estimate = metrics.frechet_estimate(x, y, groups=6)
    parts = [metrics.frechet(x, y[torch.arange(43) % 6 != g]) for g in range(6)]
    mean = sum(parts) / 6
    assert estimate.value == metrics.frechet(x, y)
    assert estimate.se == pytest.approx((5 / 6 * sum((p - mean) ** 2 for p in parts)) ** 0.5, rel=1e-5)


def test_the_jackknife_error_of_kid_is_that_of_repeated_draws() -> None:
    reference = features(200, 4, 18)
    draws = [features(80, 4, 100 + s, shift=0.5) for s in range(40)]
    estimates = [metrics.jackknife(lambda rows: ours.kid(reference, rows), draw) for draw in draws]
    spread = float(torch.tensor([e.value for e in estimates]).std())
    assert float(torch.tensor([e.se for e in estimates]).mean()) == pytest.approx(spread, rel=0.35)
