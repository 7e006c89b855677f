"""The average of weights against its closed form (the module comes from conftest.py)."""

from types import ModuleType

import torch
from gaussian import DOUBLE, normal
from torch.testing import assert_close


def test_average_of_a_constant_closes_in_geometrically(ema: ModuleType) -> None:
    start, target = normal(1, 7), normal(2, 7)
    average = start.clone()
    for _ in range(20):
        ema.update([average], [target], decay=0.8, step=10_000)
    assert_close(average, target + 0.8**20 * (start - target), rtol=1e-12, atol=0)


def test_decay_warms_up_so_that_early_weights_are_forgotten(ema: ModuleType) -> None:
    start, target = normal(1, 7), normal(2, 7)
    average, left = start.clone(), 1.0
    for step in range(30):
        ema.update([average], [target], decay=0.999, step=step)
        left *= (1 + step) / (10 + step)
    assert_close(average, target + left * (start - target))
    assert left < 1e-3


def test_every_tensor_moves_in_place_and_the_current_ones_stay(ema: ModuleType) -> None:
    average = [torch.zeros(2, dtype=DOUBLE), torch.zeros(3, 3, dtype=DOUBLE)]
    current = [torch.ones(2, dtype=DOUBLE).requires_grad_(), torch.ones(3, 3, dtype=DOUBLE)]
    ema.update(iter(average), iter(current), decay=0.75, step=10_000)
    assert [a.unique().item() for a in average] == [0.25, 0.25]
    assert all((c == 1).all() for c in current)
