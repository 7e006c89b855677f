"""Pruning scores: which blocks, heads and channels a network can spare.

Depth follows SANA-1.5 (arXiv:2501.18427, section 3.2): block importance BI_i = 1 - E[cos(X_i, X_{i+1})]. Width has
no published reference for SANA; heads and channels are scored by first-order Taylor importance
|sum w dL/dw| over a group (arXiv:1906.10771, eq. 8).
"""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def block(x_in: Tensor, x_out: Tensor) -> Tensor:
    """Returns BI = 1 - E[cos(x_in, x_out)] over samples and tokens of (B, N, D), a scalar in [0, 2]."""
    return 1 - cosine_similarity(x_in.float(), x_out.float(), dim=-1).mean()


def group(weight: Tensor, gradient: Tensor, num_groups: int) -> Tensor:
    """Returns |sum w dL/dw| (num_groups,) over equal groups of a weight's rows (arXiv:1906.10771, eq. 8)."""
    return (weight * gradient).reshape(num_groups, -1).sum(1).abs()


def keep(scores: Tensor, count: int) -> list[int]:
    """Returns the sorted indices of the `count` highest scores, what pruning keeps (arXiv:2501.18427, section
    3.2). Raises ValueError if there are not so many."""
    if not 0 < count <= len(scores):
        raise ValueError(f"cannot keep {count} of {len(scores)}")
    return sorted(torch.topk(scores, count).indices.tolist())
