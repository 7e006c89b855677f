"""Rectified flow (the module comes from conftest.py)."""

from types import ModuleType

import torch
from gaussian import DOUBLE, SHAPE, normal
from torch.testing import assert_close


def test_interpolant_is_a_straight_line_of_the_velocity_that_the_loss_wants(flow: ModuleType) -> None:
    x_0, z = normal(1, 3, *SHAPE), normal(2, 3, *SHAPE)
    at = [flow.interpolate(x_0, z, torch.full((3,), s, dtype=DOUBLE)) for s in (0.0, 0.25, 1.0)]
    assert_close(at[0], x_0)
    assert_close(at[2], z)
    velocity = (at[1] - at[0]) / 0.25
    assert flow.loss(velocity, x_0, z).item() < 1e-28
    assert_close(flow.loss(velocity + 2.0, x_0, z).item(), 4.0)


def test_each_sample_has_its_own_time(flow: ModuleType) -> None:
    x_0, z = normal(1, 2, *SHAPE), normal(2, 2, *SHAPE)
    mixed = flow.interpolate(x_0, z, torch.tensor([0.0, 1.0], dtype=DOUBLE))
    assert_close(mixed, torch.stack([x_0[0], z[1]]))


def test_guidance_extrapolates_from_the_unconditional_velocity(flow: ModuleType) -> None:
    v_u, v_c = normal(3, 3, *SHAPE), normal(4, 3, *SHAPE)
    guided = flow.guided(v_u, v_c, torch.tensor([0.0, 1.0, 3.0], dtype=DOUBLE))
    assert_close(guided, torch.stack([v_u[0], v_c[1], 3 * v_c[2] - 2 * v_u[2]]))


def test_shift_multiplies_the_odds_of_noise(flow: ModuleType) -> None:
    s = torch.linspace(0, 0.99, 50, dtype=DOUBLE)
    moved = flow.shifted(s, 3.0)
    assert_close(moved / (1 - moved), 3 * s / (1 - s))
    assert flow.shifted(torch.ones(1), 3.0).item() == 1.0
