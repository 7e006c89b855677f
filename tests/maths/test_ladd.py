"""Hinge losses and misaligned pairs (the module comes from conftest.py)."""

from types import ModuleType

import pytest
import torch
from gaussian import DOUBLE, SHAPE, normal
from torch import Tensor
from torch.testing import assert_close


def logits(*values: float) -> Tensor:
    return torch.tensor([values], dtype=DOUBLE).requires_grad_()


def test_heads_loss_is_the_hinge(ladd: ModuleType) -> None:
    real, fake = logits(-1.0, 0.5, 3.0, 1.0), logits(-3.0, -0.5, 2.0, -1.0)
    expected = ((2 + 0.5 + 0 + 0) / 4 + (0 + 0.5 + 3 + 0) / 4) / 2
    assert ladd.heads_loss(real, fake).item() == pytest.approx(expected)


def test_heads_raise_reals_and_lower_fakes_within_the_margin(ladd: ModuleType) -> None:
    real, fake = logits(0.2, 5.0), logits(-0.2, -5.0)
    ladd.heads_loss(real, fake).backward()
    assert_close(real.grad, torch.tensor([[-0.25, 0.0]], dtype=DOUBLE))
    assert_close(fake.grad, torch.tensor([[0.25, 0.0]], dtype=DOUBLE))


def test_student_raises_every_logit(ladd: ModuleType) -> None:
    fake = logits(-2.0, 4.0)
    loss = ladd.student_loss(fake)
    loss.backward()
    assert loss.item() == -1.0
    assert_close(fake.grad, torch.full((1, 2), -0.5, dtype=DOUBLE))


def test_misaligned_pairs_give_every_caption_another_picture(ladd: ModuleType) -> None:
    x_0 = normal(1, 5, *SHAPE)
    moved = ladd.misaligned(x_0)
    assert moved.shape == x_0.shape
    for i in range(5):
        assert not torch.equal(moved[i], x_0[i])
        assert sum(torch.equal(moved[i], other) for other in x_0) == 1


def test_a_batch_of_one_has_no_misaligned_pair(ladd: ModuleType) -> None:
    assert ladd.misaligned(normal(1, 1, *SHAPE)).shape == (0, *SHAPE)


def test_accuracy_counts_both_sides_alike(ladd: ModuleType) -> None:
    real, fake = torch.tensor([[1.0, 2.0, -1.0, 3.0]]), torch.tensor([[-1.0], [1.0], [-2.0], [-3.0], [-4.0]])
    assert ladd.accuracy(real, fake).item() == pytest.approx((0.75 + 0.8) / 2)
