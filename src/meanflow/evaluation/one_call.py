"""How good one call is: against many calls from the same noise, and against the field's own laws.

Nothing here knows data: a network is measured against itself. A field can keep all its laws and still make bad samples;
one that breaks them loses quality when it is sampled in few calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.conditions import Cond
from ..core.derivative import Net, call, evaluating, jvp, mean_velocity_target
from ..core.path import check_samples
from ..core.sampling import integrate, jump, noise_for

Grid = tuple[tuple[float | None, ...], ...]
# A network with its derivative in one pass costs about two of its calls.
DERIVATIVE = 2


@dataclass(frozen=True)
class Distance:
    """Distances |x - y| / |y| of samples x from the many-call samples y of the same noise."""

    calls: int
    mean: float
    median: float
    worst: float
    features: float | None = None
    """Mean of the same in the space of features, where one was given."""


@dataclass(frozen=True)
class OneCall:
    """What one call loses, and where in (r, t); every number is relative, 0 is perfect.

    Entry `[i][j]` of a grid belongs to t = times[i] and r = times[j]; it is None where r >= t.
    """

    samples: int
    many: int
    """Calls of the samples that all others are compared with."""
    distances: tuple[Distance, ...]
    times: tuple[float, ...]
    """Grid times, increasing from 0 (data) to 1 (noise)."""
    residual: Grid
    """|u - (v - (t - r) du/dt)| / |u| on the trajectories of the many-call samples, v = u(z, t, t)."""
    additivity: Grid
    """|one jump from t to r - two jumps through the middle| / |one jump|."""
    calls: int
    """Network calls that this took, each with `samples` rows; a derivative counts as two."""

    @property
    def worst_residual(self) -> tuple[float, float, float]:
        """(value, r, t) of the largest residual."""
        return _largest(self.residual, self.times)

    @property
    def worst_additivity(self) -> tuple[float, float, float]:
        """(value, r, t) of the largest additivity error."""
        return _largest(self.additivity, self.times)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def planned_calls(steps: tuple[int, ...], many: int, grid: int) -> int:
    """Network calls that `one_call` makes, each with all rows of noise."""
    pairs = grid * (grid + 1) // 2
    return many + sum(steps) + grid + pairs * (DERIVATIVE + 3)


def drawn(net: Any, count: int, first_seed: int, device: torch.device | str = "cpu") -> tuple[Tensor, Cond]:
    """Noise [count, *shape], row i from seed first_seed + i, and the classes in turn where the network has classes.

    Raises ValueError for a network with conditions of another kind, which must be given by hand.
    """
    seeds = range(first_seed, first_seed + count)
    if net.null is None:
        return noise_for(net, seeds, device), None
    if not isinstance(net.null, int):
        raise ValueError(
            "this network has conditions that are no class labels; call meanflow.evaluation.one_call from Python "
            "with conditions of yours"
        )
    cond = torch.arange(count, device=device) % net.null
    return noise_for(net, seeds, device, cond), cond


@torch.no_grad()
def one_call(
    net: Net,
    noise: Tensor,
    cond: Cond = None,
    *,
    steps: tuple[int, ...] = (1, 2, 4),
    many: int = 64,
    grid: int = 8,
    features: Callable[[Tensor], Tensor] | None = None,
) -> OneCall:
    """Compare few calls with many, and measure the field's laws on a grid of (r, t); deterministic.

    noise: [B, *shape] ~ N(0, I). steps: numbers of calls that are compared with `many` equal ones. grid: intervals of
    the grid of times, a divisor of `many`. features: samples to features [B, D].
    Raises ValueError when these do not fit together. Source: arXiv:2505.13447, eq. 6 and section 4.1 (additivity).
    """
    check_samples(noise, "noise")
    if min(steps, default=1) < 1 or grid < 2 or many % grid:
        raise ValueError(
            f"steps must be at least 1, grid at least 2, and many a multiple of grid; got steps={steps}, "
            f"grid={grid}, many={many}"
        )
    with evaluating(net):
        states = trajectory(net, noise, cond, many, grid)
        rows = [_distance(_few(net, noise, cond, n), states[-1], n, features) for n in steps]
        times = torch.linspace(0, 1, grid + 1, dtype=torch.float64).tolist()
        residual, additivity = _grids(net, list(reversed(states)), times, cond)
    return OneCall(
        samples=len(noise),
        many=many,
        distances=tuple(rows),
        times=tuple(times),
        residual=residual,
        additivity=additivity,
        calls=planned_calls(steps, many, grid),
    )


def trajectory(net: Net, noise: Tensor, cond: Cond, many: int, grid: int) -> list[Tensor]:
    """States [B, *shape] at grid + 1 equal times from 1 to 0, reached in `many` equal calls."""
    times = torch.linspace(1, 0, many + 1, dtype=torch.float64)
    each, states = many // grid, [noise]
    for k in range(grid):
        states.append(integrate(net, states[-1], cond, times=times[k * each : (k + 1) * each + 1]))
    return states


def relative_rows(x: Tensor, y: Tensor) -> Tensor:
    """|x - y| / |y| row by row, [B] in float64."""
    x, y = x.double().flatten(1), y.double().flatten(1)
    return (x - y).norm(dim=1) / y.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)


def _few(net: Net, noise: Tensor, cond: Cond, calls: int) -> Tensor:
    return integrate(net, noise, cond, times=torch.linspace(1, 0, calls + 1, dtype=torch.float64))


def _distance(x: Tensor, y: Tensor, calls: int, features: Callable[[Tensor], Tensor] | None) -> Distance:
    rows = relative_rows(x, y)
    apart = None if features is None else float(relative_rows(features(x), features(y)).mean())
    return Distance(calls, float(rows.mean()), float(rows.median()), float(rows.max()), apart)


def _grids(net: Net, states: list[Tensor], times: list[float], cond: Cond) -> tuple[Grid, Grid]:
    """Residual and additivity error, where `states` are those at the increasing `times`."""
    residual, additivity = [], []
    for i, (z, t) in enumerate(zip(states, times, strict=True)):
        blank = [None] * (len(times) - i)
        v = call(net, z, _rows(z, t), _rows(z, t), cond) if i else z
        residual.append((*(_residual(net, z, v, t, r, cond) for r in times[:i]), *blank))
        additivity.append((*(_additivity(net, z, t, r, cond) for r in times[:i]), *blank))
    return tuple(residual), tuple(additivity)


def _residual(net: Net, z: Tensor, v: Tensor, t: float, r: float, cond: Cond) -> float:
    """Relative distance of u from what the MeanFlow identity says it is.

    Source: arXiv:2505.13447, eq. 6, with the field's own velocity v = u(z, t, t).
    """
    at, end = _rows(z, t), _rows(z, r)
    u, dudt = jvp(net, z, at, end, cond, (v, torch.ones_like(at), None))
    # u = v - (t - r) du/dt
    return _ratio(u - mean_velocity_target(v, dudt, at, end), u)


def _additivity(net: Net, z: Tensor, t: float, r: float, cond: Cond) -> float:
    """Relative distance of one jump from two.

    (t - r) u(z_t, r, t) = (s - r) u(z_s, r, s) + (t - s) u(z_t, s, t), s in the middle. Source: arXiv:2505.13447, 4.1.
    """
    at, middle, end = (_rows(z, time) for time in (t, (t + r) / 2, r))
    once = jump(net, z, t=at, r=end, cond=cond)
    twice = jump(net, jump(net, z, t=at, r=middle, cond=cond), t=middle, r=end, cond=cond)
    return _ratio(once - twice, z - once)


def _ratio(difference: Tensor, whole: Tensor) -> float:
    """Root mean square of one over that of the other."""
    return float(difference.double().norm() / whole.double().norm().clamp_min(torch.finfo(torch.float64).tiny))


def _rows(z: Tensor, time: float) -> Tensor:
    return torch.full((len(z),), time, dtype=torch.promote_types(z.dtype, torch.float32), device=z.device)


def _largest(grid: Grid, times: tuple[float, ...]) -> tuple[float, float, float]:
    cells = ((value, times[j], times[i]) for i, row in enumerate(grid) for j, value in enumerate(row))
    return max((value, r, t) for value, r, t in cells if value is not None)
