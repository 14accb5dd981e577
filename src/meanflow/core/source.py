"""Where the other end of the path (t = 1) comes from, when it is not plain Gaussian noise.

A source is any callable source(x, cond, generator) that returns e of the shape, dtype and device of x [B, *shape]; all
that is random in it follows from the generator.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .conditions import Cond

Source: TypeAlias = Callable[[Tensor, Cond, "torch.Generator | None"], Tensor]


@dataclass(frozen=True)
class GaussianSource:
    """Independent normal values; the defaults are what is drawn without any source, to the last bit."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"GaussianSource needs std > 0, got {self.std}")

    def __call__(self, x: Tensor, cond: Cond = None, generator: torch.Generator | None = None) -> Tensor:
        """e [B, *shape]."""
        e = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return e if (self.mean, self.std) == (0.0, 1.0) else self.mean + self.std * e


@dataclass(frozen=True)
class UniformSource:
    """Independent values from U(low, high), by default of mean 0 and variance 1."""

    low: float = -math.sqrt(3)
    high: float = math.sqrt(3)

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"UniformSource needs low < high, got low={self.low}, high={self.high}")

    def __call__(self, x: Tensor, cond: Cond = None, generator: torch.Generator | None = None) -> Tensor:
        """e [B, *shape]."""
        e = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return self.low + (self.high - self.low) * e


class RowSource:
    """Rows of a second data set, drawn with replacement and independent of x; rows: [N, *shape]."""

    def __init__(self, rows: Tensor) -> None:
        if rows.ndim < 2 or not len(rows) or not rows.is_floating_point():
            raise ValueError(f"RowSource needs floats [N, *shape] with N >= 1, got {rows.dtype} {list(rows.shape)}")
        self.rows = rows

    def __call__(self, x: Tensor, cond: Cond = None, generator: torch.Generator | None = None) -> Tensor:
        """e [B, *shape]."""
        index = torch.randint(len(self.rows), (len(x),), generator=generator, device=x.device)
        return self.rows[index.to(self.rows.device)].to(x)

    def record(self) -> dict[str, Any]:
        """What identifies the rows, JSON-able."""
        data = self.rows.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return {"type": "RowSource", "shape": list(self.rows.shape), "sha256": hashlib.sha256(data).hexdigest()}


NAMED_SOURCES: dict[str, Callable[..., Source]] = {"GaussianSource": GaussianSource, "UniformSource": UniformSource}


def drawn(source: Source | None, x: Tensor, cond: Cond, generator: torch.Generator | None) -> Tensor:
    """e [B, *shape] for samples x from a source, plain Gaussian noise without one; ValueError for what does not fit."""
    if source is None:
        return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    e = source(x, cond, generator)
    if not isinstance(e, Tensor) or e.shape != x.shape or e.dtype != x.dtype:
        came = f"{e.dtype} {list(e.shape)}" if isinstance(e, Tensor) else type(e).__name__
        raise ValueError(
            f"the source must return values of the shape and dtype of x, {x.dtype} {list(x.shape)}, but returned {came}"
        )
    return e
