"""Classifier-free guidance that is trained into the field, so that sampling stays one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .path import like


@dataclass(frozen=True)
class Guidance:
    """Guidance in the user's notation: effective scale w' and mix k; the paper's w is scale (1 - mix).

    Source: arXiv:2505.13447, eq. 17-21.
    """

    scale: float = 1.0
    """Effective guidance scale: 1 is none, 2 to 3 is usual."""
    mix: float = 0.0
    """The paper's k in [0, 1): how much the network's own conditional prediction takes over from e - x."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Times t in which guidance acts."""
    drop: float = 0.1
    """Share of rows that lose their condition."""
    drop_rows: Literal["first", "coin"] = "first"
    """first: the first n ~ Binomial(B, drop) rows lose it (authors' code); coin: each row independently."""

    def __post_init__(self) -> None:
        low, high = self.interval
        if not self.scale > 0:
            raise ValueError(f"guidance scale must be positive (1 = none), got {self.scale}")
        if not 0 <= self.mix < 1:
            raise ValueError(f"guidance mix (the paper's k) must lie in [0, 1), got {self.mix}")
        if not 0 <= low < high <= 1:
            raise ValueError(f"guidance interval needs 0 <= low < high <= 1, got {self.interval}")
        if not 0 <= self.drop <= 1:
            raise ValueError(f"drop is the share of rows without condition, in [0, 1]; got {self.drop}")
        if self.drop_rows not in ("first", "coin"):
            raise ValueError(f"drop_rows must be 'first' or 'coin', got {self.drop_rows!r}")

    @classmethod
    def from_paper(
        cls,
        w: float,
        k: float = 0.0,
        *,
        interval: tuple[float, float] = (0.0, 1.0),
        drop: float = 0.1,
        drop_rows: Literal["first", "coin"] = "first",
    ) -> Guidance:
        """Guidance in the paper's notation (omega, kappa): effective scale w / (1 - k)."""
        if not 0 <= k < 1:
            raise ValueError(f"guidance k (the paper's kappa) must lie in [0, 1), got {k}")
        return cls(w / (1 - k), k, interval, drop, drop_rows)

    @property
    def w(self) -> float:
        """The paper's omega."""
        return self.scale * (1 - self.mix)

    @property
    def k(self) -> float:
        """The paper's kappa."""
        return self.mix

    @property
    def needs_cond(self) -> bool:
        """Whether u(z, t, t, c) enters the guided velocity."""
        return self.k != 0

    @property
    def needs_null(self) -> bool:
        """Whether u(z, t, t, null) enters the guided velocity."""
        return abs(1 - self.w - self.k) > 1e-12

    @property
    def acts(self) -> bool:
        """Whether the guided velocity differs from e - x at all."""
        return self.needs_cond or self.needs_null

    def __str__(self) -> str:
        low, high = self.interval
        return f"effective scale {self.scale:.4g} (w = {self.w:.4g}, k = {self.k:.4g}) for t in [{low:g}, {high:g}]"

    def velocity(self, v: Tensor, t: Tensor, u_cond: Tensor | None, u_null: Tensor | None) -> Tensor:
        """Guided velocity [B, *shape] from v = e - x and the network's u(z, t, t, c) and u(z, t, t, null).

        A term that is not needed may be None. Outside the interval it is v.
        """
        low, high = self.interval
        inside = like((t >= low) & (t <= high), v)
        # v~ = w v + k u(z,t,t,c) + (1 - w - k) u(z,t,t,null), arXiv:2505.13447 eq. 20
        guided = self.w * v
        if u_cond is not None:
            guided = guided + self.k * u_cond
        if u_null is not None:
            guided = guided + (1 - self.w - self.k) * u_null
        return torch.where(inside, guided, v)

    def draw_dropped(
        self, n: int, generator: torch.Generator | None = None, device: torch.device | None = None
    ) -> tuple[Tensor, int | None]:
        """Mask [n] of the rows that lose their condition, and how many leading rows are all of them, if known."""
        return draw_dropped(n, self.drop, self.drop_rows, generator, device)


def draw_dropped(
    n: int,
    drop: float,
    drop_rows: str,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> tuple[Tensor, int | None]:
    """Mask [n] with each row dropped with probability `drop`; "first" moves the dropped ones to the front.

    The second value is their number for "first", None for "coin".
    """
    if drop_rows == "coin":
        return torch.rand(n, generator=generator, device=device) < drop, None
    # Drawn on the CPU, so that the number is known without waiting for the device.
    on_cpu = generator if generator is not None and generator.device.type == "cpu" else None
    leading = int((torch.rand(n, generator=on_cpu) < drop).sum())
    return torch.arange(n, device=device) < leading, leading
