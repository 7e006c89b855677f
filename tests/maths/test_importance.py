"""Pruning scores (the module comes from conftest.py)."""

from types import ModuleType

import pytest
import torch
from gaussian import DOUBLE, normal
from torch.testing import assert_close


def test_a_block_that_only_scales_is_worth_nothing(importance: ModuleType) -> None:
    x = normal(1, 4, 6, 8)
    assert importance.block(x, 3 * x).item() == pytest.approx(0, abs=1e-6)
    assert importance.block(x, -x).item() == pytest.approx(2, abs=1e-6)
    across = torch.stack([-x[..., 1], x[..., 0]], -1)
    assert importance.block(x[..., :2], across).item() == pytest.approx(1, abs=1e-6)


def test_block_weighs_every_token_alike(importance: ModuleType) -> None:
    x_in = torch.tensor([[[1.0, 0.0], [100.0, 0.0]]])
    x_out = torch.tensor([[[0.0, 1.0], [5.0, 0.0]]])
    assert importance.block(x_in, x_out).item() == pytest.approx(0.5)


def test_group_score_is_the_first_order_loss_of_removal(importance: ModuleType) -> None:
    weight, x = normal(2, 6, 5).requires_grad_(), normal(3, 5)

    def loss(w: torch.Tensor) -> torch.Tensor:
        return (w @ x * torch.arange(6, dtype=DOUBLE)).sum()

    loss(weight).backward()
    removals = []
    for group in range(3):
        without = weight.detach().clone()
        without[2 * group : 2 * group + 2] = 0
        removals.append((loss(weight.detach()) - loss(without)).abs())
    assert_close(importance.group(weight.detach(), weight.grad, 3), torch.stack(removals))


def test_keep_returns_the_best_in_their_order(importance: ModuleType) -> None:
    scores = torch.tensor([0.3, 0.9, 0.1, 0.5])
    assert importance.keep(scores, 2) == [1, 3]
    assert importance.keep(scores, 4) == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [0, 5, -1])
def test_keep_refuses_a_count_out_of_reach(importance: ModuleType, count: int) -> None:
    with pytest.raises(ValueError, match=f"cannot keep {count} of 4"):
        importance.keep(torch.ones(4), count)
