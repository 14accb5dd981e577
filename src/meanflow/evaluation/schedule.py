"""Times for two calls or four: a search on noise, for the schedule that comes nearest to many calls."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.conditions import Cond, take
from ..core.derivative import Net, evaluating
from ..core.path import check_samples
from ..core.sampling import integrate
from .one_call import relative_rows

ROUNDS = 4  # at most, over all inner times; our choice, the search mostly ends after two


@dataclass(frozen=True)
class Schedule:
    """Times for a number of calls, and what they gain: mean distance |x - y| / |y| to many calls, on noise of its own.

    The noise of these three numbers has no part in the search.
    """

    times: tuple[float, ...]
    distance: float
    """With these times."""
    equal: float
    """With as many calls at equal intervals."""
    one: float
    """With one call."""
    samples: int
    """Samples in the search, and as many again in the comparison."""
    many: int
    """Calls of the samples that all are compared with."""
    calls: int
    """Network calls that search and comparison took, each with `samples` rows."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def __str__(self) -> str:
        times = ", ".join(f"{t:g}" for t in self.times)
        better = "no better than equal intervals" if self.distance >= self.equal else f"{self.equal:.4f} at equal ones"
        return (
            f"times {times}: distance to {self.many} calls {self.distance:.4f}, {better}, {self.one:.4f} with one call"
        )


def most_calls(steps: int, many: int, grid: int) -> int:
    """An upper bound for the network calls of `search_times`, each with half of the rows of noise."""
    # A candidate for inner time i costs the steps - i + 1 calls from there on; neighbours leave it at most
    # grid - steps + 1 places.
    tried = sum(1 + (grid - steps + 1) * (steps - i + 1) for i in range(1, steps))
    return 2 * many + ROUNDS * tried + 2 * steps + 1


@torch.no_grad()
def search_times(
    net: Net,
    steps: int,
    noise: Tensor,
    cond: Cond = None,
    *,
    many: int = 64,
    grid: int = 32,
) -> Schedule:
    """The times of `steps` calls, multiples of 1 / grid, whose samples come nearest to those of `many` equal calls.

    noise: [2 B, *shape] ~ N(0, I); the first half is searched on, the second says what was gained. Each inner time in
    turn goes to its best place between its neighbours, until none moves; deterministic. Where equal intervals are as
    good on the second half, they are the result. Raises ValueError for fewer than 2 steps or 2 rows of noise.
    """
    check_samples(noise, "noise")
    if not 2 <= steps <= grid:
        raise ValueError(f"times can be searched for 2 to {grid} calls (one call has none to choose), got {steps}")
    if len(noise) < 2:
        raise ValueError("searching times needs at least 2 rows of noise, one half to search on and one to compare on")
    half = len(noise) // 2
    with evaluating(net):
        halves = (noise[:half], take(cond, slice(None, half))), (noise[half:], take(cond, slice(half, None)))
        (goal, other) = (integrate(net, z, c, times=_equal(many)) for z, c in halves)
        search = _Search(net, *halves[0], goal, grid)
        found = search.run(steps)

        def gained(times: Tensor) -> float:
            z, c = halves[1]
            return float(relative_rows(integrate(net, z, c, times=times), other).mean())

        chosen = gained(torch.tensor(found, dtype=torch.float64) / grid)
        equal, one = gained(_equal(steps)), gained(_equal(1))
    times = tuple(n / grid for n in found) if chosen < equal else tuple(_equal(steps).tolist())
    calls = 2 * many + search.calls + 2 * steps + 1
    return Schedule(times, min(chosen, equal), equal, one, half, many, calls)


class _Search:
    """Coordinate descent over inner times in units of 1 / grid; counts the network calls."""

    def __init__(self, net: Net, noise: Tensor, cond: Cond, goal: Tensor, grid: int) -> None:
        self.net, self.noise, self.cond, self.goal, self.grid, self.calls = net, noise, cond, goal, grid, 0

    def run(self, steps: int) -> list[int]:
        """Decreasing places from grid to 0."""
        places = [round(self.grid * (1 - i / steps)) for i in range(steps + 1)]
        for _ in range(ROUNDS):
            before = list(places)
            self._sweep(places)
            if places == before:
                break
        return places

    def _sweep(self, places: list[int]) -> None:
        """Move every inner time once, from noise to data; the state before it is computed once."""
        z = self.noise
        for i in range(1, len(places) - 1):
            above, below = places[i - 1], places[i + 1]
            trials = {s: self._distance(z, [above, s, *places[i + 1 :]]) for s in range(below + 1, above)}
            # The present place wins a tie, so that the search ends.
            places[i] = min(trials, key=lambda s: (trials[s], s != places[i]))
            z = self._follow(z, [above, places[i]])

    def _distance(self, z: Tensor, places: list[int]) -> float:
        return float(relative_rows(self._follow(z, places), self.goal).mean())

    def _follow(self, z: Tensor, places: list[int]) -> Tensor:
        self.calls += len(places) - 1
        times = torch.tensor(places, dtype=torch.float64, device=z.device) / self.grid
        return integrate(self.net, z, self.cond, times=times)


def weights_hash(net: nn.Module) -> str:
    """SHA-256 of all weights and buffers, with their names; what a searched schedule belongs to."""
    sums = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        whole = value.detach().cpu().contiguous()
        sums.update(f"{name} {whole.dtype} {list(whole.shape)}".encode())
        sums.update(whole.flatten().view(torch.uint8).numpy().tobytes() if whole.numel() else b"")
    return sums.hexdigest()


def _equal(steps: int) -> Tensor:
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)
