"""Scores of generated pictures with their standard errors. Feature sets are (N, D), a row per picture; every
estimate is a deterministic function of its input.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """A score and its standard error."""

    value: float
    se: float


def proportion(successes: int, trials: int) -> Estimate:
    """Returns the share of successes. The standard error takes p at the Jeffreys mean (k + 1/2)/(n + 1), so
    that it is not zero for 0 or n successes (Brown, Cai and DasGupta 2001, doi:10.1214/ss/1009213286, section
    3).
    """
    p = (successes + 0.5) / (trials + 1)
    return Estimate(successes / trials, (p * (1 - p) / trials) ** 0.5)


def mean(values: Tensor) -> Estimate:
    """Returns the mean of a sample (N,) with s / sqrt(N), s unbiased; N = 1 has a standard error of 0 by
    convention.
    """
    x = values.double()
    spread = float(x.std(correction=1)) if len(x) > 1 else 0.0
    return Estimate(float(x.mean()), spread / len(x) ** 0.5)


def average(parts: Sequence[Estimate]) -> Estimate:
    """Returns the unweighted mean of independent estimates, with se = sqrt(sum se_i^2) / n."""
    n = len(parts)
    return Estimate(sum(p.value for p in parts) / n, sum(p.se**2 for p in parts) ** 0.5 / n)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean (D,) and unbiased covariance X^T X / (N - 1) of centred rows X (D, D), in float64."""
    x = features.double()
    centred = x - x.mean(0)
    return x.mean(0), centred.T @ centred / max(len(x) - 1, 1)


def root(covariance: Tensor) -> Tensor:
    """Returns the symmetric R with R R = covariance, positive semi-definite; negative rounding is cut at
    0.
    """
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def gaussian_frechet(mean_a: Tensor, root_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Returns |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), the squared Frechet distance of two
    Gaussians (arXiv:1706.08500, eq. 6), from A's square root. The inner matrix is symmetric: its eigenvalues
    are real.
    """
    inner = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + (root_a @ root_a).trace() + cov_b.trace() - 2 * inner
    return max(float(distance), 0.0)


def few_frechet(mean_a: Tensor, cov_a: Tensor, rows: Tensor) -> float:
    """Returns `gaussian_frechet` of the Gaussian fitted to fewer rows X (N, D) than features: X A X^T / (N - 1) has the
    eigenvalues of A^1/2 B A^1/2 that are not zero, and is N x N.
    """
    mean_b = rows.double().mean(0)
    centred = (rows.double() - mean_b) / max(len(rows) - 1, 1) ** 0.5
    inner = torch.linalg.eigvalsh(centred @ cov_a @ centred.T).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + centred.square().sum() - 2 * inner
    return max(float(distance), 0.0)


def frechet_to(reference: Tensor) -> Callable[[Tensor], float]:
    """Returns the function that measures `frechet` (arXiv:1706.08500, eq. 6) of generated rows (N, D) against a
    reference."""
    mean_a, cov_a = moments(reference)
    root_a: list[Tensor] = []

    def distance(generated: Tensor) -> float:
        if len(generated) < generated.shape[1]:
            return few_frechet(mean_a, cov_a, generated)
        if not root_a:
            root_a.append(root(cov_a))
        return gaussian_frechet(mean_a, root_a[0], *moments(generated))

    return distance


def frechet(reference: Tensor, generated: Tensor) -> float:
    """Returns the squared Frechet distance between Gaussians fitted to two feature sets, FID on these
    features (arXiv:1706.08500, eq. 6). Biased upwards for few pictures: compare scores of equal counts
    only.
    """
    return frechet_to(reference)(generated)


def jackknife(score: Callable[[Tensor], float], generated: Tensor, groups: int = 20) -> Estimate:
    """Returns a score of the generated rows (N, D) with its delete-a-group jackknife standard error, sqrt((G - 1)
    mean (s_g - mean s)^2) over the scores s_g without each of G groups (Kott 2001, Journal of Official Statistics
    17(4)); every `groups`-th picture is one group.
    """
    number = torch.arange(len(generated)) % groups
    kept = [generated[number != group] for group in range(min(groups, len(generated)))]
    parts = torch.tensor([score(rows) for rows in kept])
    return Estimate(score(generated), float((len(kept) - 1) ** 0.5 * parts.double().std(correction=0)))


def frechet_estimate(reference: Tensor, generated: Tensor, groups: int = 20) -> Estimate:
    """Returns `frechet` (arXiv:1706.08500, eq. 6) with the standard error of `jackknife` over the generated pictures.
    The reference set is taken as fixed.
    """
    return jackknife(frechet_to(reference), generated, groups)


def clip_scores(images: Tensor, texts: Tensor) -> Tensor:
    """Returns 100 max(cos(image, text), 0) of each pair of rows (N,) (CLIPScore, arXiv:2104.08718, eq. 1, with the
    weight 100 that the generation literature reports).
    """
    return 100 * torch.nn.functional.cosine_similarity(images.double(), texts.double(), dim=1).clamp(min=0)


def clip_score(images: Tensor, texts: Tensor) -> Estimate:
    """Returns the mean of `clip_scores` (arXiv:2104.08718)."""
    return mean(clip_scores(images, texts))
