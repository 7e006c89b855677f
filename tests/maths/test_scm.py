"""The sCM loss against finite differences and closed forms in float64 (the module: conftest.py)."""

from itertools import pairwise
from types import ModuleType

import pytest
import torch
from gaussian import DOUBLE, SHAPE, Gaussian, network, normal
from torch import Tensor
from torch.testing import assert_close

SIGMA = 0.5
TIMES = torch.tensor([0.05, 0.4, 0.9, 1.3, 1.55], dtype=DOUBLE)
B = len(TIMES)


def column(t_B: Tensor) -> Tensor:
    return t_B.reshape(-1, 1, 1, 1)


def latents() -> Tensor:
    return SIGMA * normal(21, B, *SHAPE)


def teacher(x: Tensor) -> Tensor:
    """Returns dx/dt of an arbitrary teacher at latents x."""
    return SIGMA * torch.sin(3 * x + column(TIMES))


def consistency(x: Tensor, t_B: Tensor) -> Tensor:
    """Returns f(x_t, t) of the random network, written out: cos(t) x_t - sin(t) sigma_d F."""
    return column(t_B).cos() * x - column(t_B).sin() * SIGMA * network(x / SIGMA, t_B)


def along_the_path(dxdt: Tensor, function=consistency) -> Tensor:
    """Returns d/dt of function(x_t, t) along the path of velocity dxdt, by central differences."""
    h, x = 1e-5, latents()
    return (function(x + h * dxdt, TIMES + h) - function(x - h * dxdt, TIMES - h)) / (2 * h)


def full_tangent(scm: ModuleType, F, dxdt: Tensor, r: float) -> Tensor:
    x = latents()
    F_minus, cos_sin_dF = scm.derivative(F, x, TIMES, dxdt, SIGMA)
    return scm.tangent(x, F_minus, cos_sin_dF, dxdt, TIMES, SIGMA, r)


def test_derivative_equals_finite_differences(scm: ModuleType) -> None:
    x = latents()
    F, cos_sin_dF = scm.derivative(network, x, TIMES, teacher(x), SIGMA)
    dF = along_the_path(teacher(x), lambda x, t: network(x / SIGMA, t))
    assert_close(F, network(x / SIGMA, TIMES))
    assert_close(cos_sin_dF, column(TIMES.cos() * TIMES.sin()) * dF, atol=1e-8, rtol=0)


def test_tangent_is_cos_t_times_df_dt(scm: ModuleType) -> None:
    dxdt = teacher(latents())
    expected = column(TIMES).cos() * along_the_path(dxdt)
    assert_close(full_tangent(scm, network, dxdt, r=1.0), expected, atol=1e-8, rtol=0)


def test_perfect_student_has_zero_tangent(scm: ModuleType) -> None:
    data = Gaussian.drawn(30)
    dxdt = SIGMA * data.velocity(latents() / SIGMA, TIMES)
    g = full_tangent(scm, data.student, dxdt, r=1.0)
    assert_close(g, torch.zeros_like(g), atol=1e-11, rtol=0)
    wrong = full_tangent(scm, lambda x, t_B: data.student(x, t_B) + 0.1, dxdt, r=1.0)
    assert wrong.flatten(1).norm(dim=1).min() > 1e-5


def test_warmup_scales_the_derivative_term_alone(scm: ModuleType) -> None:
    dxdt = teacher(latents())
    start, half, end = (full_tangent(scm, network, dxdt, r) for r in (0.0, 0.5, 1.0))
    expected = -(column(TIMES).cos() ** 2) * (SIGMA * network(latents() / SIGMA, TIMES) - dxdt)
    assert_close(start, expected)
    assert_close(half, (start + end) / 2)


def test_descent_moves_f_towards_f_a_moment_earlier(scm: ModuleType) -> None:
    x, h = latents(), 1e-6
    dxdt = teacher(x)
    g = full_tangent(scm, network, dxdt, r=1.0)
    F = network(x / SIGMA, TIMES).requires_grad_()
    scm.loss(F, F.detach(), g, torch.zeros(B, dtype=DOUBLE), TIMES, SIGMA).backward()
    moved = -column(TIMES).sin() * SIGMA * -F.grad
    wanted = consistency(x - h * dxdt, TIMES - h) - consistency(x, TIMES)
    similarity = torch.nn.functional.cosine_similarity(moved.flatten(1), wanted.flatten(1))
    assert_close(similarity, torch.ones(B, dtype=DOUBLE), atol=1e-6, rtol=0)


def test_gradient_at_the_student_is_minus_2_w_g_over_n(scm: ModuleType) -> None:
    g, logvar = normal(22, B, *SHAPE), normal(23, B)
    F = normal(24, B, *SHAPE).requires_grad_()
    scm.loss(F, F.detach().clone(), g, logvar, TIMES, SIGMA).backward()
    weight = 1 / (SIGMA * TIMES.tan()) * (-logvar).exp()
    assert_close(F.grad, -2 * column(weight) * g / g.numel(), rtol=1e-10, atol=1e-14)


def test_gradient_stops_at_the_stopped_student(scm: ModuleType) -> None:
    g, logvar, F = normal(22, B, *SHAPE), normal(23, B), normal(24, B, *SHAPE)
    value = scm.loss(F + g, F, g, logvar, TIMES, SIGMA)
    assert_close(value, logvar.mean())


def test_best_log_variance_is_the_log_of_the_weighted_error(scm: ModuleType) -> None:
    g, F = normal(22, B, *SHAPE), normal(24, B, *SHAPE)
    error = g.square().flatten(1).mean(1) / (SIGMA * TIMES.tan())
    logvar = error.log().requires_grad_()
    scm.loss(F, F, g, logvar, TIMES, SIGMA).backward()
    assert_close(logvar.grad, torch.zeros(B, dtype=DOUBLE), atol=1e-12, rtol=0)


def test_normalize_bounds_each_sample_by_itself(scm: ModuleType) -> None:
    g = column(torch.tensor([0.0, 1e-3, 1.0, 1e3, 1e6], dtype=DOUBLE)) * normal(25, B, *SHAPE)
    norm = g.flatten(1).norm(dim=1)
    normalized = scm.normalize(g, 0.1)
    assert_close(normalized.flatten(1).norm(dim=1), norm / (norm + 0.1))
    assert_close(normalized[3], scm.normalize(g[3:4], 0.1)[0])
    assert (normalized * g >= 0).all()


def test_size_invariant_norm_is_the_same_at_every_resolution(scm: ModuleType) -> None:
    g = column(torch.tensor([0.0, 1e-3, 1.0, 1e3, 1e6], dtype=DOUBLE)) * normal(25, B, *SHAPE)
    larger = g.repeat(1, 1, 4, 4)
    normalized = scm.normalize(g, 0.1, size_invariant=True)
    assert_close(scm.normalize(larger, 0.1, size_invariant=True), normalized.repeat(1, 1, 4, 4))
    rms, rms_after = (x.square().flatten(1).mean(1).sqrt() for x in (g, normalized))
    assert_close(rms_after, rms / (rms + 0.1))


def test_plain_norm_grows_with_the_resolution(scm: ModuleType) -> None:
    g = normal(25, B, *SHAPE)
    norm = column(g.flatten(1).norm(dim=1))
    larger = scm.normalize(g.repeat(1, 1, 4, 4), 0.1)
    assert_close(larger, (g / (4 * norm + 0.1)).repeat(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("step", "steps", "r"), [(0, 100, 0.0), (25, 100, 0.25), (100, 100, 1.0), (9000, 100, 1.0), (0, 0, 1.0)]
)
def test_warmup_rises_linearly_to_one(scm: ModuleType, step: int, steps: int, r: float) -> None:
    assert scm.warmup(step, steps) == r


def test_consistency_of_the_gaussian_is_the_end_of_its_ode() -> None:
    data = Gaussian.drawn(30)
    steps = 1000
    start = normal(26, B, *SHAPE)
    ts = torch.linspace(1.4, 0.0, steps + 1, dtype=DOUBLE)
    x = start
    for now, after in pairwise(ts):
        middle = x + (after - now) / 2 * data.velocity(x, now.expand(B))
        x = x + (after - now) * data.velocity(middle, ((now + after) / 2).expand(B))
    assert_close(data.consistency(start, torch.full((B,), 1.4, dtype=DOUBLE)), x, atol=1e-5, rtol=0)
