"""The speed of sampling, as a ratio to the bare network call."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ..core.sampling import sample
from .cost import ratio, times


@dataclass(frozen=True)
class SampleRow:
    """Samples per second with `steps` network calls, and the time over that of as many bare calls."""

    steps: int
    images_per_second: float
    time_over_bare_calls: float
    spread: float


def price_sampling(net: nn.Module, *, batch: int = 64, rounds: int = 20, device: str = "cpu") -> dict[str, Any]:
    """Rows for 1, 2 and 4 calls; JSON-able."""
    where = torch.device(device)
    net = net.to(where).eval()
    noise = torch.randn(batch, *net.shape, device=where)  # type: ignore[misc]
    null = getattr(net, "null", None)
    labels = torch.arange(batch, device=where) % null if isinstance(null, int) else None
    one, zero = torch.ones(batch, device=where), torch.zeros(batch, device=where)

    def bare() -> None:
        with torch.no_grad():
            net(noise, t=one, r=zero, cond=labels)

    works = {"bare": bare} | {str(n): (lambda n=n: sample(net, noise, labels, steps=n)) for n in (1, 2, 4)}
    taken = times(works, rounds, where)
    rows = []
    for n in (1, 2, 4):
        middle, spread = ratio(taken[str(n)], taken["bare"])
        per_second = batch / sorted(taken[str(n)])[rounds // 2]
        rows.append(asdict(SampleRow(n, per_second, middle / n, spread / n)))
    return {"batch": batch, "device": device, "torch": torch.__version__, "rows": rows}


def sampling_table(result: dict[str, Any]) -> str:
    """The rows as text."""
    lines = [f"{'calls':>6}{'samples/s':>14}{'time / bare calls':>22}"]
    for r in result["rows"]:
        lines.append(
            f"{r['steps']:>6}{r['images_per_second']:>14,.0f}{r['time_over_bare_calls']:>15.3f} ± {r['spread']:.3f}"
        )
    return "\n".join(lines)
