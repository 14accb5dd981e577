"""The speed of sampling, as a ratio to the bare network call."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..core.graphs import CudaGraphSampler
from ..core.sampling import sample
from .cost import ratio, times

CALLS = (1, 2, 4)


@dataclass(frozen=True)
class SampleRow:
    """Samples per second with `steps` network calls, and the time over that of as many bare calls.

    graph: whether they are replayed from a CUDA graph.
    """

    steps: int
    graph: bool
    images_per_second: float
    milliseconds: float
    time_over_bare_calls: float
    spread: float


def price_sampling(net: nn.Module, *, batch: int = 64, rounds: int = 20, device: str = "cpu") -> dict[str, Any]:
    """Rows for 1, 2 and 4 calls, on a GPU with and without a CUDA graph; JSON-able."""
    where = torch.device(device)
    net = net.to(where).eval()
    noise = torch.randn(batch, *net.shape, device=where)  # type: ignore[misc]
    null = getattr(net, "null", None)
    labels = torch.arange(batch, device=where) % null if isinstance(null, int) else None
    one, zero = torch.ones(batch, device=where), torch.zeros(batch, device=where)

    def bare() -> None:
        with torch.no_grad():
            net(noise, t=one, r=zero, cond=labels)

    samplers: dict[tuple[int, bool], Any] = {(n, False): partial(sample, net, steps=n) for n in CALLS}
    if where.type == "cuda":
        samplers |= {(n, True): CudaGraphSampler(net, noise, labels, steps=n) for n in CALLS}
    works = {"bare": bare} | {str(key): partial(draw, noise, labels) for key, draw in samplers.items()}
    taken = times(works, rounds, where)
    rows = []
    for n, graph in samplers:
        seconds = sorted(taken[str((n, graph))])[rounds // 2]
        middle, spread = ratio(taken[str((n, graph))], taken["bare"])
        rows.append(asdict(SampleRow(n, graph, batch / seconds, 1e3 * seconds, middle / n, spread / n)))
    return {"batch": batch, "device": device, "torch": torch.__version__, "rows": rows}


def sampling_table(result: dict[str, Any]) -> str:
    """The rows as text."""
    lines = [f"{'calls':>6}{'ms':>10}{'samples/s':>14}{'time / bare calls':>22}"]
    for r in result["rows"]:
        lines.append(
            f"{r['steps']:>6}{r['milliseconds']:>10.2f}{r['images_per_second']:>14,.0f}"
            f"{r['time_over_bare_calls']:>15.3f} ± {r['spread']:.3f}{'  CUDA graph' if r['graph'] else ''}"
        )
    return "\n".join(lines)
