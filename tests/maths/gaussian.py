"""Closed forms on Gaussian data, the independent side of the proofs of maths/.

Unit-variance noise z and data x_0 ~ N(mean, U diag(variance) U^T), both in unit scale. For x = a x_0 + b z
the pair is jointly Gaussian, hence with S = a^2 C + b^2 I

    E[x_0 | x] = mean + a C S^-1 (x - a mean),   E[z | x] = b S^-1 (x - a mean)

and the probability-flow ODE maps x at time t to  mean + C^1/2 S^-1/2 (x - cos(t) mean)  at time 0.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SHAPE = (2, 1, 2)
DIM = math.prod(SHAPE)
DOUBLE = torch.float64


def normal(seed: int, *shape: int) -> Tensor:
    """Returns standard normal numbers in float64, a function of the seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def column(t_B: Tensor) -> Tensor:
    """Returns times as (B, 1), written here again so that no proof leans on `trigflow.over`."""
    return t_B[:, None]


@dataclass(frozen=True)
class Gaussian:
    """Gaussian data of shape SHAPE per sample."""

    mean: Tensor
    variance: Tensor
    axes: Tensor

    @classmethod
    def drawn(cls, seed: int) -> "Gaussian":
        """Returns a Gaussian with random mean, axes and variances between 0.2 and 2."""
        axes = torch.linalg.qr(normal(seed, DIM, DIM))[0]
        return cls(normal(seed + 1, DIM), torch.linspace(0.2, 2.0, DIM, dtype=DOUBLE), axes)

    @property
    def covariance(self) -> Tensor:
        """Returns C (D, D)."""
        return self.axes @ torch.diag(self.variance) @ self.axes.T

    def scaled(self, spectrum_BD: Tensor, x: Tensor) -> Tensor:
        """Returns U diag(spectrum) U^T x per sample."""
        return ((x @ self.axes) * spectrum_BD) @ self.axes.T

    def expectations(self, x: Tensor, a_B: Tensor, b_B: Tensor) -> tuple[Tensor, Tensor]:
        """Returns E[x_0 | x] and E[z | x] for x = a x_0 + b z, all (B, D)."""
        a, b = column(a_B), column(b_B)
        total = a**2 * self.variance + b**2
        centred = x - a * self.mean
        data = self.mean + self.scaled(a * self.variance / total, centred)
        return data, self.scaled(b / total, centred)

    def flow_velocity(self, x_s: Tensor, s_B: Tensor) -> Tensor:
        """Returns the true v = E[z - x_0 | x_s] of rectified flow."""
        data, noise = self.expectations(x_s.flatten(1), 1 - s_B, s_B)
        return (noise - data).reshape(x_s.shape)

    def velocity(self, x: Tensor, t_B: Tensor) -> Tensor:
        """Returns the true F(x_t / sigma_d, t) = E[cos(t) z - sin(t) x_0 | x_t] of TrigFlow, unit scale."""
        data, noise = self.expectations(x.flatten(1), t_B.cos(), t_B.sin())
        return (column(t_B.cos()) * noise - column(t_B.sin()) * data).reshape(x.shape)

    def contraction(self, t_B: Tensor) -> Tensor:
        """Returns the spectrum (B, D) of C^1/2 S^-1/2 at times t."""
        cos, sin = column(t_B.cos()), column(t_B.sin())
        return (self.variance / (cos**2 * self.variance + sin**2)).sqrt()

    def consistency(self, x: Tensor, t_B: Tensor) -> Tensor:
        """Returns the end at time 0 of the probability-flow ODE through (x_t / sigma_d, t), unit scale."""
        centred = x.flatten(1) - column(t_B.cos()) * self.mean
        return (self.mean + self.scaled(self.contraction(t_B), centred)).reshape(x.shape)

    def student(self, x: Tensor, t_B: Tensor) -> Tensor:
        """Returns F of the perfect student, which solves cos(t) x - sin(t) F = consistency(x, t)."""
        t = t_B.reshape(-1, 1, 1, 1)
        return (t.cos() * x - self.consistency(x, t_B)) / t.sin()


def network(x: Tensor, t_B: Tensor) -> Tensor:
    """Returns the output of a small smooth random network (x, t) -> velocity; no closed form knows it."""
    flat = torch.cat([x.flatten(1), t_B.cos()[:, None], t_B[:, None]], dim=1)
    hidden = torch.tanh(flat @ normal(11, DIM + 2, 16) / 2 + normal(12, 16))
    return (hidden @ normal(13, 16, DIM) / 4).reshape(x.shape)
