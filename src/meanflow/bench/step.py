"""The price of a training step, as ratios to flow matching and to the authors' algorithm."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.derivative import Mode
from ..core.guidance import Guidance
from ..core.path import relative
from ..core.times import Pairs, Times
from ..nets import DiT
from ..objectives import FlowMatching, MeanFlow
from ..objectives.base import Precision
from .authors import authors_loss
from .cost import Work, compiled_flops, flops, peak_bytes, ratio, times


@dataclass(frozen=True)
class StepSettings:
    """The step that is priced; the defaults are DiT of width 384, depth 6, 64 tokens, batch 32."""

    width: int = 384
    """Features per token."""
    depth: int = 6
    """Blocks."""
    heads: int = 6
    """Attention heads."""
    patch: int = 2
    """Side of a token."""
    channels: int = 4
    """Channels of a sample."""
    size: int = 16
    """Side of a sample."""
    classes: int = 10
    """Number of classes."""
    batch: int = 32
    """Samples per step."""
    share_equal: float = 0.75
    """Share of rows with r = t."""
    drop: float = 0.1
    """Share of rows that lose their label."""
    derivative: Mode = "exact"
    """How du/dt is computed."""
    precision: Precision = "fp32"
    """fp32, or bf16 under autocast, for all three."""
    compile: bool = False
    """Compile all three; FLOPs are then counted in the compiled graphs."""
    rounds: int = 5
    """Interleaved rounds of timing."""
    device: str = "cpu"
    """Device, e.g. cpu or cuda."""


@dataclass(frozen=True)
class StepRow:
    """One objective against a flow-matching step and against the authors' algorithm."""

    guidance: str
    flops_ratio: float
    """FLOPs over those of a flow-matching step."""
    memory_ratio: float | None
    """Peak bytes, weights included, over those of a flow-matching step; None where it cannot be counted."""
    time_ratio: float
    """Time over that of a flow-matching step, median over rounds."""
    time_spread: float
    """Half the distance between the quartiles of time_ratio."""
    speedup_vs_authors: float
    """Time of the authors' algorithm over ours, median over rounds."""
    speedup_spread: float
    """Half the distance between the quartiles of speedup_vs_authors."""
    authors_flops_ratio: float
    authors_memory_ratio: float | None
    authors_time_ratio: float
    gradient_difference: float
    """Relative difference of all gradients to the authors' algorithm on the same draws."""


def price_step(s: StepSettings) -> dict[str, Any]:
    """One unguided row and one with w = 1, k = 0.5; JSON-able."""
    device = torch.device(s.device)
    torch.manual_seed(0)
    net = _filled(
        DiT(
            (s.channels, s.size, s.size),
            patch=s.patch,
            width=s.width,
            depth=s.depth,
            heads=s.heads,
            classes=s.classes,
        )
    ).to(device)
    rows = [_row(s, net, guidance) for guidance in (None, Guidance.from_paper(1.0, 0.5, drop=s.drop))]
    parameters = sum(p.numel() for p in net.parameters())
    return {
        "settings": asdict(s),
        "parameters": parameters,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rows": [asdict(row) for row in rows],
    }


def _row(s: StepSettings, net: nn.Module, guidance: Guidance | None) -> StepRow:
    device = torch.device(s.device)
    works = _works(s, net, guidance, device, round(s.drop * s.batch))
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    cost = _expected_flops(s, net, guidance, device)
    peak = None
    if not s.compile or device.type == "cuda":
        peak = {name: peak_bytes(work, device) + weights for name, work in works.items()}
    taken = times(works, s.rounds, device)
    time_ratio, time_spread = ratio(taken["ours"], taken["flow"])
    speedup, speedup_spread = ratio(taken["authors"], taken["ours"])
    return StepRow(
        guidance="none" if guidance is None else f"w = {guidance.w:g}, k = {guidance.k:g}",
        flops_ratio=cost["ours"] / cost["flow"],
        memory_ratio=peak["ours"] / peak["flow"] if peak else None,
        time_ratio=time_ratio,
        time_spread=time_spread,
        speedup_vs_authors=speedup,
        speedup_spread=speedup_spread,
        authors_flops_ratio=cost["authors"] / cost["flow"],
        authors_memory_ratio=peak["authors"] / peak["flow"] if peak else None,
        authors_time_ratio=ratio(taken["authors"], taken["flow"])[0],
        gradient_difference=relative(_gradient(net, works["ours"]), _gradient(net, works["authors"])),
    )


def _expected_flops(
    s: StepSettings, net: nn.Module, guidance: Guidance | None, device: torch.device
) -> dict[str, float]:
    """FLOPs at the expected number of dropped rows: a mean of the whole numbers beside it, weighted by nearness."""
    count = compiled_flops if s.compile else flops
    low = math.floor(s.drop * s.batch) if guidance else 0
    share = s.drop * s.batch - low if guidance else 0.0
    costs = [{name: count(work) for name, work in _works(s, net, guidance, device, low).items()}]
    # In compiled graphs the number of rows is fixed, and only the lower number is certain.
    if share > 0 and not s.compile:
        costs.append({name: count(work) for name, work in _works(s, net, guidance, device, low + 1).items()})
    return {name: (1 - share) * costs[0][name] + share * costs[-1][name] for name in costs[0]}


def _works(
    s: StepSettings, net: nn.Module, guidance: Guidance | None, device: torch.device, drops: int
) -> dict[str, Work]:
    """A training step without the optimiser, by flow matching, by this project and by the authors' algorithm."""
    x, noise = torch.randn(2, s.batch, *net.shape, device=device)  # type: ignore[misc]
    labels = torch.arange(s.batch, device=device) % s.classes
    sampler = Times(share_equal=s.share_equal)
    t, r, equal = sampler.draw(s.batch, device=device)
    # The dropped rows come first, as in the authors' code.
    dropped = torch.arange(s.batch, device=device) < drops if guidance else None
    flow = FlowMatching(net, precision=s.precision)
    ours = MeanFlow(net, times=sampler, guidance=guidance, derivative=s.derivative, precision=s.precision)
    w, k = (guidance.w, guidance.k) if guidance else (1.0, 0.0)
    authors: Any = authors_loss
    if s.compile:
        flow.compile()
        ours.compile()
        authors = torch.compile(authors_loss, fullgraph=True, dynamic=False)

    def authors_step() -> Tensor:
        given = {"noise": noise, "t": t, "r": r, "dropped": dropped, "null": s.classes, "w": w, "k": k}
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=s.precision == "bf16"):
            return authors(net, x, labels, **given)

    return {
        "flow": _step(net, lambda: flow._run(x, labels, noise, t, None).loss),
        "ours": _step(net, lambda: ours._run(x, labels, noise, Pairs(t, r, equal), dropped, drops).loss),
        "authors": _step(net, authors_step),
    }


def _step(net: nn.Module, loss: Any) -> Work:
    def work() -> None:
        net.zero_grad(set_to_none=True)
        loss().backward()

    return work


def _gradient(net: nn.Module, work: Work) -> Tensor:
    work()
    return torch.cat([p.grad.flatten().clone() for p in net.parameters() if p.grad is not None])


def _filled(net: nn.Module) -> nn.Module:
    """Small noise in the parameters that start as zeros: with zero gates nothing would flow back."""
    for p in net.parameters():
        if not bool(p.any()):
            nn.init.normal_(p, std=0.02)
    return net


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def step_table(result: dict[str, Any]) -> str:
    """The rows as text."""
    head = f"{'':24}{'FLOPs':>9}{'memory':>9}{'time':>16}"
    batch, device = result["settings"]["batch"], result["settings"]["device"]
    title = f"one training step as a ratio to flow matching; DiT with {result['parameters']:,} parameters"
    lines = [f"{title}, batch {batch}, {device}, torch {result['torch']}", head]
    for r in result["rows"]:
        lines += [
            f"guidance {r['guidance']}",
            f"  {'meanflow':22}{r['flops_ratio']:9.3f}{_shown(r['memory_ratio']):>9}"
            f"{r['time_ratio']:9.2f} ± {r['time_spread']:.2f}",
            f"  {'authors algorithm':22}{r['authors_flops_ratio']:9.3f}{_shown(r['authors_memory_ratio']):>9}"
            f"{r['authors_time_ratio']:9.2f}",
            f"  authors' time / ours {r['speedup_vs_authors']:.2f} ± {r['speedup_spread']:.2f}; "
            f"gradients differ by {r['gradient_difference']:.1e}",
        ]
    return "\n".join(lines)
