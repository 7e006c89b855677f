"""Distances between pictures beside the Frechet distance of metrics.py: kernel distances without bias, precision and
recall. Feature sets are (N, D), a row per picture, of any float type. `metrics.jackknife` gives the standard error.

All pairs are computed, in float64 and in tiles of at most BLOCK rows on either side.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 1024
BANDWIDTH = 10.0  # of CMMD
ROUNDING = 1e-12  # of a squared distance, relative to the squared lengths that it is computed from


def check(reference: Tensor, generated: Tensor, least: int) -> None:
    """Raises ValueError unless both sets are (N, D) with N >= least and the same D."""
    if reference.shape[1] != generated.shape[1]:
        raise ValueError(
            f"reference features have {reference.shape[1]} dimensions and generated ones {generated.shape[1]}: "
            "take both from the same network"
        )
    for name, features in (("reference", reference), ("generated", generated)):
        if len(features) < least:
            raise ValueError(f"{len(features)} {name} pictures: at least {least} are needed")


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """Returns (x.y / D + 1)^3 for all pairs of rows (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(x: Tensor, y: Tensor) -> Tensor:
    """Returns exp(-|x - y|^2 / (2 BANDWIDTH^2)) for all pairs of rows (N, M) after their normalisation to length 1,
    where |x - y|^2 = 2 - 2 x.y.
    """
    cosine = functional.normalize(x, dim=1) @ functional.normalize(y, dim=1).T
    return ((cosine - 1) / BANDWIDTH**2).exp()


def mmd(x: Tensor, y: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Returns the unbiased squared maximum mean discrepancy, mean_(i != j) k(x_i, x_j) + mean_(i != j) k(y_i, y_j)
    - 2 mean k(x_i, y_j) (Gretton et al. 2012, JMLR 13, lemma 6). It may be negative.
    """
    tiles = ((rows.double(), columns.double()) for rows in x.split(BLOCK) for columns in y.split(BLOCK))
    across = sum(float(kernel(rows, columns).sum()) for rows, columns in tiles) / (len(x) * len(y))
    return within(x, kernel) + within(y, kernel) - 2 * across


def within(x: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Returns mean_(i != j) k(x_i, x_j) = 2 sum_(i < j) k(x_i, x_j) / (N (N - 1)) of a symmetric kernel."""
    total, parts = 0.0, x.split(BLOCK)
    for number, part in enumerate(parts):
        rows = part.double()
        own = kernel(rows, rows)
        total += float(own.sum() - own.trace())
        total += 2 * sum(float(kernel(rows, later.double()).sum()) for later in parts[number + 1 :])
    return total / (len(x) * (len(x) - 1))


def kid(reference: Tensor, generated: Tensor) -> float:
    """Returns KID, the unbiased squared MMD under the kernel (x.y / D + 1)^3 (Binkowski et al. 2018, arXiv:1801.01401),
    over all pairs, without the random subsets of public code. Raises ValueError for fewer than 2 rows or unequal D.
    """
    check(reference, generated, 2)
    return mmd(reference, generated, cubic)


def cmmd(reference: Tensor, generated: Tensor) -> float:
    """Returns CMMD of CLIP embeddings, 1000 times the squared MMD under a Gaussian kernel of bandwidth 10 on embeddings
    of length 1 (Jayasumana et al. 2024, arXiv:2401.09603). Ours is unbiased. The public code keeps the diagonal
    k(x_i, x_i) = 1, so its values are higher, the more so the fewer the pictures. Raises ValueError for fewer than 2
    rows or unequal D.
    """
    check(reference, generated, 2)
    return 1000 * mmd(reference, generated, gaussian)


def squared_distances(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns |x - y|^2 = |x|^2 + |y|^2 - 2 x.y for all pairs of rows (N, M) in float64, and how much of it may be
    rounding (N, M).
    """
    x, y = x.double(), y.double()
    lengths = x.square().sum(1)[:, None] + y.square().sum(1)
    return (lengths - 2 * x @ y.T).clamp(min=0), ROUNDING * lengths


def squared_radii(x: Tensor, neighbours: int) -> Tensor:
    """Returns the squared distance of each row to its k-th nearest other row (N,), NN_k of arXiv:1904.06991, eq. 1."""
    radii, k = [], neighbours + 1  # a row is its own nearest
    for rows in x.split(BLOCK):
        tiles = (squared_distances(rows, columns)[0] for columns in x.split(BLOCK))
        nearest = [tile.topk(min(k, tile.shape[1]), largest=False).values for tile in tiles]
        radii.append(torch.cat(nearest, dim=1).kthvalue(k, dim=1).values)
    return torch.cat(radii)


def precision_recall(reference: Tensor, generated: Tensor, neighbours: int) -> tuple[float, float]:
    """Returns the share of generated rows that lie in a ball around a reference row, and of reference rows in a ball
    around a generated one; a ball reaches to the k-th neighbour in its own set, and its surface belongs to it (improved
    precision and recall, Kynkaanniemi et al. 2019, arXiv:1904.06991, eq. 1 and 2). Raises ValueError for no more rows
    than neighbours or unequal D.
    """
    if neighbours < 1:
        raise ValueError(f"{neighbours} neighbours: at least 1 is needed")
    check(reference, generated, neighbours + 1)
    radii_r, radii_g = squared_radii(reference, neighbours), squared_radii(generated, neighbours)
    covered_r, covered_g = torch.zeros_like(radii_r, dtype=torch.bool), torch.zeros_like(radii_g, dtype=torch.bool)
    for i in range(0, len(reference), BLOCK):
        for j in range(0, len(generated), BLOCK):
            r, g = slice(i, i + BLOCK), slice(j, j + BLOCK)
            distances, rounding = squared_distances(reference[r], generated[g])
            reached = distances - rounding
            covered_g[g] |= (reached <= radii_r[r, None]).any(0)
            covered_r[r] |= (reached <= radii_g[g]).any(1)
    return float(covered_g.double().mean()), float(covered_r.double().mean())
