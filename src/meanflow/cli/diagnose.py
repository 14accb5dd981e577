"""meanflow diagnose."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from ..core.sampling import guided
from ..data.files import write_text
from ..evaluation import OneCall, heat_map, one_call, save_picture
from ..evaluation.one_call import drawn, planned_calls
from ..training import load
from ..training.run import pick_device
from .words import at_least_one, numbers, parse

# Of the first noise; neither grids of training nor evaluation nor the search for times use these. Our choice.
FIRST_SEED = 2_000_000


@dataclass
class Diagnose:
    """Say how good one call of a run is: its distance to many calls from the same noise, and where its field breaks its
    own laws. Writes numbers and a heat map.
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""
    steps: str = "1,2,4"
    """Numbers of network calls that are compared with many."""
    many: int = 64
    """Network calls of the samples they are compared with."""
    grid: int = 8
    """Intervals of the grid of times, a divisor of --many."""
    samples: int = 256
    """Samples; classes in turn."""
    guidance: float | None = None
    """Guidance scale at sampling time, for runs that were trained without guidance inside."""
    ema: float | str | None = None
    """Decay of the averaged weights to use, the run's first by default; power:0.075 rebuilds one of that length."""
    raw: bool = False
    """Use the weights without averaging."""
    out: Path | None = None
    """Name of the files without .json and .png; by default one-call in the run folder."""
    json: bool = False
    """Print one JSON object instead of a table."""
    device: str = "auto"
    """Device: cpu, cuda, or auto for the first GPU where there is one."""


def run(words: list[str]) -> int:
    """Diagnose a run."""
    s = parse(Diagnose, words, "diagnose")
    at_least_one(samples=s.samples, many=s.many)
    steps, device = tuple(numbers(s.steps, "steps")), pick_device(s.device)
    net = load(s.run, ema=s.ema, raw=s.raw, device=device)
    if s.out is None and not s.run.is_dir():
        raise ValueError(f"{s.run} is a model of the hub and no folder here; say where to write, with --out NAME")
    field = guided(net, s.guidance)
    noise, cond = drawn(net, s.samples, FIRST_SEED, device)
    if not s.json:
        calls = planned_calls(steps, s.many, s.grid)
        print(f"{calls} network calls of {s.samples} rows each")
    found = one_call(field, noise, cond, steps=steps, many=s.many, grid=s.grid)
    out = s.out or s.run / "one-call"
    about = {"run": str(s.run), "ema": s.ema, "raw": s.raw, "guidance": s.guidance, "first_seed": FIRST_SEED}
    result = {**about, **found.to_dict()}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out.with_name(f"{out.name}.json"), json.dumps(result, indent=1))
    picture = save_picture(heat_map(found), out.with_name(f"{out.name}.png"))
    print(json.dumps(result) if s.json else f"{table(found)}\nheat map: {picture}")
    return 0


def table(found: OneCall) -> str:
    """The distances as an aligned text table, and where the laws are broken most."""
    lines = [f"{'calls':>5}  {'mean':>8}  {'median':>8}  {'worst':>8}   |x - y| / |y|, y: {found.many} calls"]
    lines += [f"{d.calls:>5}  {d.mean:>8.4f}  {d.median:>8.4f}  {d.worst:>8.4f}" for d in found.distances]
    laws = (
        ("identity residual", found.worst_residual, found.residual),
        ("additivity error", found.worst_additivity, found.additivity),
    )
    for name, (value, r, t), grid in laws:
        whole = grid[-1][0]
        lines.append(f"{name}: {whole:.2%} of |u| from noise to data, at most {value:.2%}, at t = {t:.3g}, r = {r:.3g}")
    return "\n".join(lines)
