"""Derivatives by differences against forward mode (the module comes from conftest.py)."""

from types import ModuleType

import pytest
import torch
from gaussian import network
from test_scm import SIGMA, TIMES, column, latents, teacher
from torch import Tensor
from torch.testing import assert_close

from sana_sprint.maths import scm


def errors(by, steps: list[float]) -> list[float]:
    """Returns the largest error of a derivative by differences at each step."""
    given = (network, latents(), TIMES, teacher(latents()), SIGMA)
    exact = scm.derivative(*given)[1]
    return [(by(*given, step)[1] - exact).abs().max().item() for step in steps]


def test_semi_is_right_to_second_order_in_its_step(difference: ModuleType) -> None:
    coarse, fine, finest = errors(difference.semi, [0.04, 0.02, 1e-4])
    assert coarse / fine == pytest.approx(4, rel=0.05)
    assert 1e-12 < finest < 1e-8


def test_central_is_right_to_second_order_in_its_step(difference: ModuleType) -> None:
    coarse, fine, finest = errors(difference.central, [0.04, 0.02, 1e-4])
    assert coarse / fine == pytest.approx(4, rel=0.05)
    assert 1e-12 < finest < 1e-8


def test_semi_is_exact_along_x_and_for_a_parabola_in_time(difference: ModuleType) -> None:
    def F(x: Tensor, t_B: Tensor) -> Tensor:
        return torch.sin(5 * x) * column(t_B**2 - t_B)

    given = (F, latents(), TIMES, teacher(latents()), SIGMA)
    assert_close(difference.semi(*given, 0.5)[1], scm.derivative(*given)[1], atol=1e-12, rtol=0)


def test_f_itself_comes_with_its_derivative(difference: ModuleType) -> None:
    x = latents()
    for by in (difference.semi, difference.central):
        F, _ = by(network, x, TIMES, teacher(x), SIGMA, 0.3)
        assert_close(F, network(x / SIGMA, TIMES), atol=1e-15, rtol=0)
