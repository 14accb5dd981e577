"""Closed forms that tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from meanflow.core import like


class GaussianField(nn.Module):
    """The exact mean velocity for data N(m, s^2): a network that needs no training.

    a(t)^2 = (1 - t)^2 s^2 + t^2, z_r = (1 - r) m + a(r) / a(t) (z - (1 - t) m), u = (z - z_r) / (t - r).
    """

    def __init__(self, m: float = 0.7, s: float = 0.5) -> None:
        super().__init__()
        self.m, self.s = m, s
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def a(self, t: Tensor) -> Tensor:
        return ((1 - t) ** 2 * self.s**2 + t**2).sqrt()

    def flow(self, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """The exact map from time t to time r."""
        t, r = like(t, z), like(r, z)
        return (1 - r) * self.m + self.a(r) / self.a(t) * (z - (1 - t) * self.m)

    def velocity(self, z: Tensor, t: Tensor) -> Tensor:
        """Marginal velocity: the derivative of the flow in its end time."""
        a, s = self.a(like(t, z)), like(t, z)
        slope = (s - (1 - s) * self.s**2) / a
        return -self.m + slope / a * (z - (1 - s) * self.m)

    def forward(self, z: Tensor, *, t: Tensor, r: Tensor, cond: object = None) -> Tensor:
        length = like(t - r, z)
        safe = torch.where(length == 0, torch.ones_like(length), length)
        u = (z - self.flow(z, t, r)) / safe
        return self.weight * torch.where(length == 0, self.velocity(z, t), u)


SHAPES = [(2,), (5, 4), (3, 8, 8), (1, 2, 3, 4)]


def draw(shape: tuple[int, ...], n: int = 16, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z, noise, t, r in float64 with r < t."""
    g = torch.Generator().manual_seed(seed)
    z, noise = (torch.randn(n, *shape, generator=g, dtype=torch.float64) for _ in range(2))
    times = torch.rand(2, n, generator=g, dtype=torch.float64).sort(0).values
    return z, noise, times[1], times[0]


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|."""
    return float((a - b).detach().norm() / b.detach().norm())
