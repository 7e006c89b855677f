"""Samplers of time (the module comes from conftest.py)."""

import math
from types import ModuleType

import torch
from gaussian import DOUBLE, normal
from torch.testing import assert_close


def test_log_normal_noise_level_is_log_normal(times: ModuleType) -> None:
    n = normal(1, 1000)
    t = times.log_normal(n, 0.2, 1.6, 0.5)
    assert_close((0.5 * t.tan()).log(), 0.2 + 1.6 * n, atol=1e-9, rtol=0)
    assert ((t > 0) & (t < math.pi / 2)).all()


def test_logit_normal_logit_is_normal(times: ModuleType) -> None:
    n = normal(2, 1000)
    assert_close(torch.logit(times.logit_normal(n, 0.8, 1.5)), 0.8 + 1.5 * n, atol=1e-9, rtol=0)


def test_max_time_picks_by_probability_and_puts_pure_noise(times: ModuleType) -> None:
    t = torch.full((1000,), 0.3, dtype=DOUBLE)
    uniform = (torch.arange(1000, dtype=DOUBLE) + 0.5) / 1000
    for prob in (0.0, 0.25, 0.5, 1.0):
        drawn = times.with_max_time(t, uniform, prob)
        picked = drawn == math.pi / 2
        assert picked.sum() == round(1000 * prob), "the probability is a share, not a time"
        assert (drawn[~picked] == 0.3).all()
        assert torch.equal(picked, uniform < prob)
