"""Where the pairs of times (t, r) of a training batch come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """Times t, r [B] with 0 <= r <= t <= 1; `equal` leading rows are known to have r = t, None = unknown."""

    t: Tensor
    r: Tensor
    equal: int | None


@dataclass(frozen=True)
class Uniform:
    """Times from U(low, high)."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"Uniform needs 0 <= low < high <= 1, got low={self.low}, high={self.high}")

    def draw(self, n: int, generator: torch.Generator | None = None, device: torch.device | None = None) -> Tensor:
        """n times [n] in [low, high]."""
        return self.low + (self.high - self.low) * torch.rand(n, generator=generator, device=device)


@dataclass(frozen=True)
class LogitNormal:
    """Times 1 / (1 + exp(-g)) with g ~ N(mean, std^2); source: arXiv:2505.13447, section 4.3."""

    mean: float = -0.4
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"LogitNormal needs std > 0, got {self.std}")

    def draw(self, n: int, generator: torch.Generator | None = None, device: torch.device | None = None) -> Tensor:
        """n times [n] in (0, 1)."""
        return torch.sigmoid(self.mean + self.std * torch.randn(n, generator=generator, device=device))


TimeDistribution: TypeAlias = Uniform | LogitNormal


@dataclass(frozen=True)
class Times:
    """Sampler of (t, r) pairs: two draws, ordered, then r := t on a share of the rows.

    t, r: the distributions; r None means that of t. share_equal: share of rows with r = t, in [0, 1].
    pick: "first" sets r := t on the first floor(share B) rows (authors' JAX code; static shapes), "coin" on
    each row independently (authors' CIFAR code). order: "sort" makes the larger draw t before r := t;
    "clip" keeps the draws apart and ends with r := min(t, r) (CIFAR code v1).
    """

    t: TimeDistribution = field(default_factory=LogitNormal)
    r: TimeDistribution | None = None
    share_equal: float = 0.75
    pick: Literal["first", "coin"] = "first"
    order: Literal["sort", "clip"] = "sort"

    def __post_init__(self) -> None:
        if not 0 <= self.share_equal <= 1:
            raise ValueError(
                f"share_equal is the share of rows with r = t, in [0, 1]; got {self.share_equal} "
                "(the paper's '25 % r != t' is share_equal=0.75)"
            )
        if self.pick not in ("first", "coin"):
            raise ValueError(f"pick must be 'first' or 'coin', got {self.pick!r}")
        if self.order not in ("sort", "clip"):
            raise ValueError(f"order must be 'sort' or 'clip', got {self.order!r}")

    @classmethod
    def authors_jax(cls) -> Times:
        """ImageNet settings of the authors' JAX code: lognorm(-0.4, 1), 75 % r = t, first rows."""
        return cls(LogitNormal(-0.4, 1.0), share_equal=0.75, pick="first", order="sort")

    @classmethod
    def cifar_v0(cls) -> Times:
        """CIFAR-10 settings of the paper: lognorm(-2, 2) for both, 25 % r = t, by coin."""
        return cls(LogitNormal(-2.0, 2.0), share_equal=0.25, pick="coin", order="sort")

    @classmethod
    def cifar_v1(cls) -> Times:
        """CIFAR-10 settings that the authors recommend: t lognorm(-0.6, 1.6), r lognorm(-4, 1.6)."""
        return cls(LogitNormal(-0.6, 1.6), LogitNormal(-4.0, 1.6), share_equal=0.25, pick="coin", order="clip")

    def draw(self, n: int, generator: torch.Generator | None = None, device: torch.device | None = None) -> Pairs:
        """Pairs of times for a batch of n rows, float32."""
        t = self.t.draw(n, generator, device)
        r = (self.r or self.t).draw(n, generator, device)
        if self.order == "sort":
            t, r = torch.maximum(t, r), torch.minimum(t, r)
        if self.pick == "first":
            equal = int(n * self.share_equal)
            r = torch.cat([t[:equal], r[equal:]])
        else:
            equal = None
            coin = torch.rand(n, generator=generator, device=device) < self.share_equal
            r = torch.where(coin, t, r)
        return Pairs(t, torch.minimum(t, r), equal)
