"""Distribution matching between Gaussians, whose scores and divergence are known (the module comes from conftest.py).

The student is x_0 = mean + root w of w ~ N(0, I). What is asked of a mean over (w, z) is a quadratic form in them, so
the points +-sqrt(n) e_i, whose first two moments are those of N(0, I) in n dimensions, give it without sampling error.
"""

from types import ModuleType

import torch
from gaussian import DIM, DOUBLE, SHAPE, Gaussian, normal
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence
from torch.testing import assert_close

TEACHER = Gaussian.drawn(60)
T = torch.tensor(0.8, dtype=DOUBLE)
POINTS = (2 * DIM) ** 0.5 * torch.cat([torch.eye(2 * DIM, dtype=DOUBLE), -torch.eye(2 * DIM, dtype=DOUBLE)])


def student() -> tuple[Tensor, Tensor]:
    """Returns mean (D,) and root (D, D) of a student that is not the teacher."""
    return normal(61, DIM).requires_grad_(), (torch.eye(DIM, dtype=DOUBLE) + normal(62, DIM, DIM) / 4).requires_grad_()


def seen_by(mean: Tensor, root: Tensor) -> Gaussian:
    """Returns the student's distribution, which its true score knows."""
    variance, axes = torch.linalg.eigh((root @ root.T).detach())
    return Gaussian(mean.detach(), variance, axes)


def divergence(mean: Tensor, root: Tensor) -> Tensor:
    """Returns KL(student | teacher) of both noised to time T."""
    noise = T.sin() ** 2 * torch.eye(DIM, dtype=DOUBLE)
    pairs = ((mean, root @ root.T), (TEACHER.mean, TEACHER.covariance))
    return kl_divergence(*(MultivariateNormal(T.cos() * m, T.cos() ** 2 * c + noise) for m, c in pairs))


def sample(mean: Tensor, root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the student's x_0 and, of its noised self, E[x_0 | x_t] under teacher and student, all (B, C, H, W)."""
    w, z = POINTS.chunk(2, 1)
    x_0 = mean + w @ root.T
    times = T.expand(len(w))
    x = T.cos() * x_0 + T.sin() * z
    real, fake = (data.expectations(x, times.cos(), times.sin())[0] for data in (TEACHER, seen_by(mean, root)))
    return tuple(y.reshape(-1, *SHAPE) for y in (x_0, real, fake))


def test_the_gap_without_its_scale_is_the_gradient_of_the_divergence(dmd: ModuleType) -> None:
    mean, root = student()
    x_0, real, fake = sample(mean, root)
    scale = (x_0 - real).abs().mean((1, 2, 3), keepdim=True).detach()
    (x_0 * dmd.gap(x_0, real, fake) * scale).sum((1, 2, 3)).mean().backward()
    wanted = torch.autograd.grad(divergence(mean, root), (mean, root))
    weight = T.tan() ** 2  # of the score gap cos(t) (fake - real) / sin^2(t), and dx_t/dx_0 = cos(t)
    assert_close((mean.grad, root.grad), tuple(weight * g for g in wanted), atol=1e-10, rtol=0)


def test_every_step_of_descent_brings_the_student_nearer_to_the_teacher(dmd: ModuleType) -> None:
    mean, root = student()
    optimizer = torch.optim.SGD((mean, root), lr=0.3)
    start = before = divergence(mean, root).item()
    for _ in range(100):
        x_0, real, fake = sample(mean, root)
        optimizer.zero_grad()
        dmd.loss(x_0, dmd.gap(x_0, real, fake)).backward()
        optimizer.step()
        after = divergence(mean, root).item()
        assert after < before
        before = after
    assert after < 1e-3 * start


def test_the_gap_closes_where_both_scores_agree(dmd: ModuleType) -> None:
    x_0, real, _ = sample(*student())
    assert not dmd.gap(x_0, real, real.clone()).any()


def test_each_gap_is_measured_by_its_own_distance_to_the_real(dmd: ModuleType) -> None:
    x_0 = torch.zeros(2, 1, 1, 2, dtype=DOUBLE)
    real = torch.tensor([1.0, -3.0, 100.0, 100.0], dtype=DOUBLE).reshape(x_0.shape)
    fake = torch.tensor([2.0, -3.0, 100.0, 50.0], dtype=DOUBLE).reshape(x_0.shape)
    assert_close(dmd.gap(x_0, real, fake).flatten(), torch.tensor([0.5, 0.0, 0.0, -0.5], dtype=DOUBLE))


def test_a_sample_that_is_the_real_one_has_a_finite_gap(dmd: ModuleType) -> None:
    x_0 = normal(63, 2, *SHAPE)
    assert torch.isfinite(dmd.gap(x_0, x_0, x_0 + 1e-9)).all()


def test_no_gradient_flows_through_the_gap(dmd: ModuleType) -> None:
    seen = [normal(seed, 3, *SHAPE).requires_grad_() for seed in (64, 65, 66)]
    assert not dmd.gap(*seen).requires_grad


def test_the_gradient_of_the_loss_is_the_gap_over_the_number_of_values(dmd: ModuleType) -> None:
    x_0, grad = normal(67, 3, *SHAPE).requires_grad_(), normal(68, 3, *SHAPE)
    value = dmd.loss(x_0, grad)
    value.backward()
    assert_close(x_0.grad, grad / grad.numel(), rtol=1e-12, atol=0)
    assert_close(value.detach(), grad.square().mean() / 2)
