"""Which directions of time, sign and arguments a trained network has, found out by what it fits best."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.conditions import Cond
from ..core.derivative import evaluating
from ..core.path import conditional_velocity, interpolate, like
from .report import Finding
from .subject import Subject

# A residual below this share of another one wins against it.
CLEAR = 0.8
# How close to the best another convention must be to be named beside it.
TIE = 1.05
# Residuals that are rounding alone.
TINY = 1e-6


@dataclass(frozen=True)
class Convention:
    """How to call a network of another convention so that it answers in ours."""

    name: str
    sign: str = ""
    t: str = "t"
    r: str = "r"

    def ask(self, s: Subject, z: Tensor, t: Tensor, r: Tensor, cond: Cond) -> Tensor:
        """The network's answer [B, *shape], translated."""
        times = {"t": t, "r": r, "1 - t": 1 - t, "1 - r": 1 - r, "t - r": t - r, "1000 * t": 1000 * t}
        times["1000 * r"] = 1000 * r
        u = s.net(z, t=times[self.t], r=times[self.r], cond=cond)
        return -u if self.sign else u

    def adapter(self, kind: str) -> str:
        """Three lines that translate the network."""
        return (
            f"class Adapted({kind}):\n"
            "    def forward(self, z, *, t, r, cond=None):\n"
            f"        return {self.sign}super().forward(z, t={self.t}, r={self.r}, cond=cond)"
        )


OURS = Convention("t = 1 noise, v = e - x")
OTHERS = (
    Convention("the opposite sign (x - e instead of e - x)", sign="-"),
    Convention("time reversed (noise at t = 0)", t="1 - t", r="1 - r"),
    Convention("time reversed and the opposite sign (noise at t = 0, v = x - e)", sign="-", t="1 - t", r="1 - r"),
    Convention("times from 0 to 1000", t="1000 * t", r="1000 * r"),
)
# Known only from rows with r < t; on rows with r = t a length of zero looks like guidance undone.
OF_INTERVALS = (
    Convention("t and r swapped", t="r", r="t"),
    Convention("the length t - r in place of r", r="t - r"),
)


@dataclass(frozen=True)
class Rows:
    """Questions with known answers: z, target [B, *shape], t, r [B]."""

    z: Tensor
    t: Tensor
    r: Tensor
    target: Tensor
    cond: Cond


@torch.no_grad()
def check_convention(s: Subject) -> Finding:
    """Compare the residuals of all conventions with each other and with that of predicting zero."""
    rows = _rows(s)
    known = (OURS, *OTHERS, *(OF_INTERVALS if s.gaussian else ()))
    zero = float(rows.target.square().mean())
    with evaluating(s.net):
        shares = {c: _residual(s, rows, c) / zero for c in known}
    best = min(shares, key=lambda c: shares[c])
    found = f"residuals as shares of that of predicting zero: ours {shares[OURS]:.2g}, best {shares[best]:.2g}"
    if shares[best] >= CLEAR:
        return Finding("convention", None, f"untrained, or strongly guided: the convention cannot be told ({found})")
    right = shares[best] >= CLEAR * shares[OURS] or shares[OURS] < TINY
    limit = TIE * max(shares[OURS if right else best], TINY)
    tied = [c for c in known if c is not OURS and shares[c] <= limit]
    if right:
        return Finding("convention", True, f"u fits e - x with noise at t = 1 ({found})" + _not_told(s, tied))
    names = " or ".join(c.name for c in tied)
    remedy = f"translate it:\n{best.adapter(type(s.net).__name__)}"
    return Finding("convention", False, f"what fits the network is {names} ({found})", remedy)


def _not_told(s: Subject, tied: list[Convention]) -> str:
    if not tied:
        return ""
    advice = "" if s.has_data or s.gaussian else "; pass x from the training data to tell them apart"
    return f"; on these data the same as {' or '.join(c.name for c in tied)}{advice}"


def _residual(s: Subject, rows: Rows, convention: Convention) -> float:
    """Mean squared error of the network in this convention; infinite where it cannot be called so."""
    try:
        u = convention.ask(s, rows.z, rows.t, rows.r, rows.cond)
        error = float((u - rows.target).square().mean())
    except Exception:
        if convention is OURS:
            raise
        return math.inf
    return error if math.isfinite(error) else math.inf


def _rows(s: Subject) -> Rows:
    """Enough rows that some thousand numbers are compared."""
    n = max(8, min(256, 4096 // s.x[0].numel()))
    x, cond = s.rows(n)
    noise = torch.randn_like(x)
    grid = ((torch.arange(n, device=x.device) + 0.5) / n).to(x.dtype)
    if s.gaussian is not None:
        return _gaussian_rows(s.gaussian, noise, grid, cond)
    # Near t = 1 z is noise whatever the data were: made-up data do no harm there.
    t = grid if s.has_data else 0.8 + 0.2 * grid
    return Rows(interpolate(x, noise, t), t, t, conditional_velocity(x, noise), cond)


def _gaussian_rows(gaussian: tuple[float, float], noise: Tensor, grid: Tensor, cond: Cond) -> Rows:
    """Rows with r = t and with r < t, and the mean velocity of data N(m, s^2) in closed form."""
    m, s = gaussian

    def a(t: Tensor) -> Tensor:
        return ((1 - t).square() * s**2 + t.square()).sqrt()

    t = 0.2 + 0.8 * grid
    even = torch.arange(len(t), device=t.device) % 2 == 0
    r = torch.where(even, t, 0.5 * t)
    # z_t = (1 - t) m + a(t) n, z_r = (1 - r) m + a(r) n, u = (z_t - z_r) / (t - r), for r -> t its derivative in t
    length = torch.where(even, torch.ones_like(t), t - r)
    slope = torch.where(even, (t - (1 - t) * s**2) / a(t), (a(t) - a(r)) / length)
    return Rows(like(1 - t, noise) * m + like(a(t), noise) * noise, t, r, like(slope, noise) * noise - m, cond)
