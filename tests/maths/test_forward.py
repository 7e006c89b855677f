"""Forward mode with still weights against torch.func.jvp in float64 (the module: conftest.py)."""

from types import ModuleType

import torch
from gaussian import DOUBLE, normal
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

MASK = torch.tensor([[0.0, 0.0, -1e4], [0.0, 0.0, 0.0]], dtype=DOUBLE)[:, None, None]


def judge(forward: ModuleType, f, *shapes: tuple[int, ...]) -> None:
    """Compares value and derivative of f at random points along random directions."""
    points, ways = (tuple(normal(seed + i, *s) for i, s in enumerate(shapes)) for seed in (31, 41))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        expected = torch.func.jvp(f, points, ways)
        found = forward.jvp(f, points, ways)
    assert_close(found[0], expected[0], atol=1e-12, rtol=0)
    assert_close(found[1], expected[1], atol=1e-12, rtol=0)


def test_linear_maps_with_still_weights(forward: ModuleType) -> None:
    judge(forward, lambda x: functional.linear(x, normal(1, 3, 4), normal(2, 3)).sin(), (2, 4))
    judge(forward, lambda x: functional.conv2d(x, normal(3, 4, 1, 3, 3), normal(4, 4), 1, 1, 1, 4), (2, 4, 3, 3))


def test_attention_to_still_keys_and_values(forward: ModuleType) -> None:
    def f(q: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, normal(5, 2, 2, 3, 4), normal(6, 2, 2, 3, 4), attn_mask=MASK)

    judge(forward, f, (2, 2, 5, 4))


def test_what_moves_in_every_part_is_left_to_pytorch(forward: ModuleType) -> None:
    judge(forward, functional.linear, (2, 4), (3, 4))
    judge(forward, functional.scaled_dot_product_attention, (2, 2, 5, 4), (2, 2, 3, 4), (2, 2, 3, 4))
    judge(forward, lambda q, v: functional.scaled_dot_product_attention(q, q, v), (2, 5, 4), (2, 5, 4))
    judge(
        forward,
        lambda q, v: functional.scaled_dot_product_attention(q, 1 + 0 * normal(7, 2, 3, 4), v),
        (2, 5, 4),
        (2, 3, 4),
    )


def test_what_does_not_move_has_derivative_zero(forward: ModuleType) -> None:
    still = normal(8, 2, 4)
    value, derivative = forward.jvp(lambda _: functional.linear(still, normal(9, 3, 4)), (still,), (still,))
    assert_close(value, functional.linear(still, normal(9, 3, 4)))
    assert not derivative.any()
