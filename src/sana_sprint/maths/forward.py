"""Forward-mode derivatives of a network whose weights and captions stand still.

PyTorch's forward mode also multiplies by their zero tangents: a third of the convolutions and a quarter of the matrix
products of SANA's pass. Here a linear map A moves as A dx, and softmax attention to still keys and values as

    d(p v) = (p (ds - sum p ds)) v    with p = softmax(s), s = q k^T / sqrt(d) + mask, ds = dq k^T / sqrt(d)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def jvp(f: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Returns (y, dy) = (f(x), f'(x) dx), as torch.func.jvp does."""
    with forward_ad.dual_level(), _Still():
        out = forward_ad.unpack_dual(f(*map(forward_ad.make_dual, primals, tangents)))
    return out.primal, torch.zeros_like(out.primal) if out.tangent is None else out.tangent


class _Still(TorchFunctionMode):
    """Spares the products with the tangents of what has none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = RULES.get(func)
        if rule and args and all(forward_ad.unpack_dual(x).tangent is None for x in args[1:3] if x is not None):
            primal, tangent = forward_ad.unpack_dual(args[0])
            if tangent is not None:
                return forward_ad.make_dual(*rule(func, primal, tangent, *args[1:], **kwargs))
        return func(*args, **kwargs)


def _linear(func: Any, x: Tensor, dx: Tensor, weight: Tensor, bias: Tensor | None = None, *how: Any) -> Any:
    return func(x, weight, bias, *how), func(dx, weight, None, *how)


def _attention(
    _func: Any,
    q: Tensor,
    dq: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor]:
    assert not dropout_p
    assert not is_causal
    k_T = k.transpose(-2, -1) / q.shape[-1] ** 0.5
    s = q @ k_T if attn_mask is None else q @ k_T + attn_mask
    p, ds = s.softmax(-1), dq @ k_T
    dp = p * (ds - (p * ds).sum(-1, keepdim=True))
    return p @ v, dp @ v


RULES: dict[Any, Callable[..., Any]] = {
    functional.linear: _linear,
    functional.conv2d: _linear,
    functional.scaled_dot_product_attention: _attention,
}
