"""meanflow ema."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from ..data.files import write_text
from ..evaluation import Judge, protocol, protocol_for
from ..training import load, posthoc_ema
from ..training.posthoc import PosthocEMA, profile_error, write_average
from ..training.profiles import check_length
from ..training.run import pick_device, read_config
from ..training.subjects import run_data
from .judging import check_fits
from .status import trend
from .words import at_least_one, parse

SMALLER = ("frechet", "kid")  # metrics that are better when they are smaller


@dataclass
class Ema:
    """Rebuild averages of the weights after the run, of any length, from the snapshots of `train --ema-power`.

    --sigma writes one as a file; --sweep judges many and finds the best length. `meanflow sample RUN --ema power:0.075`
    uses one without a file. Lengths are relative: the standard deviation of the averaging window over the whole run.
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""
    sigma: float | None = None
    """Relative length of the average to write."""
    sweep: str | None = None
    """Lengths to judge, as shortest:longest:how many, in equal ratios, e.g. 0.02:0.25:12."""
    at: int | None = None
    """Images seen at the end of the average, the time of a snapshot; the last one by default."""
    out: Path | None = None
    """File: for --sigma NAME.safetensors, for --sweep NAME.json; by default ema-sweep.json in the run folder."""
    protocol: str | None = None
    """How the sweep judges; by default what belongs to the data of the run."""
    metric: str = "frechet"
    """What is to be small: frechet or kid."""
    steps: int = 1
    """Network calls of the samples that the sweep judges."""
    samples: int = 2000
    """Samples for each length."""
    device: str = "auto"
    """Device: cpu, cuda, or auto for the first GPU where there is one."""


def run(words: list[str]) -> int:
    """Rebuild one average, or judge many."""
    s = parse(Ema, words, "ema")
    at_least_one(steps=s.steps, samples=s.samples)
    if (s.sigma is None) == (s.sweep is None):
        raise ValueError("give either --sigma 0.075 for one average or --sweep 0.02:0.25:12 to judge many")
    return _write(s, s.sigma) if s.sigma is not None else _sweep(s, lengths(str(s.sweep)))


def lengths(text: str) -> list[float]:
    """ "0.02:0.25:12" as twelve lengths in equal ratios; raises ValueError for anything else."""
    try:
        low, high, count = (kind(part) for kind, part in zip((float, float, int), text.split(":"), strict=True))
    except ValueError as error:
        raise ValueError(f"--sweep takes shortest:longest:how many, e.g. 0.02:0.25:12, got {text!r}") from error
    check_length(low)
    check_length(high)
    if not low < high or count < 2:
        raise ValueError(f"--sweep goes from a shorter to a longer length in at least 2, got {text!r}")
    ratio = (high / low) ** (1 / (count - 1))
    return [low * ratio**i for i in range(count)]


def _write(s: Ema, sigma: float) -> int:
    if s.out is None or s.out.suffix != ".safetensors":
        raise ValueError(f"--sigma writes weights and needs --out NAME.safetensors, got {s.out}")
    read_config(s.run)
    found = posthoc_ema(s.run, sigma, s.at)
    print(f"{write_average(found, s.out)}: {about(found)}")
    return 0


def about(found: PosthocEMA) -> str:
    """One line on a rebuilt average."""
    return (
        f"average of relative length {found.sigma:g} after {found.images:,} images, rebuilt from {found.snapshots} "
        f"kept ones; its profile is {found.error:.2%} from the ideal one"
    )


def _sweep(s: Ema, sigmas: list[float]) -> int:
    """Judge every length, print a table as it grows, and write everything."""
    data = read_config(s.run)["data"]
    chosen = protocol(s.protocol) if s.protocol else protocol_for(data)
    usable = [name for name in SMALLER if name in chosen.metrics]
    if s.metric not in usable:
        least = " or ".join(usable)
        raise ValueError(f"the sweep looks for the least {least} of protocol {chosen.name}, not {s.metric!r}")
    device = pick_device(s.device)
    profile_error(s.run, sigmas[0], s.at)  # says what is missing before anything is judged
    if data.get("latents"):
        raise ValueError(f"{s.run} was trained on latents, which a sweep does not decode; use meanflow evaluate")
    train, held_out, why = (None, None, "") if chosen.reference.source is not None else run_data(read_config(s.run))
    if why:
        raise ValueError(f"the protocol {chosen.name} judges by the data of the run, and {why}")
    judge = Judge(replace(chosen, metrics=(s.metric,)), data=train, held_out=held_out, device=device)
    print(
        f"{'length':>8}  {s.metric:>10}  {'profile':>8}  protocol {chosen.name}, {s.samples} samples, calls: {s.steps}"
    )
    rows = []
    for row in _judged(s, judge, sigmas, device):
        rows.append(row)
        print(f"{row['sigma']:>8.4f}  {row[s.metric]:>10.4f}  {row['profile_error']:>8.2%}", flush=True)
    best = min(rows, key=lambda row: row[s.metric])
    line = trend([row[s.metric] for row in rows])
    print(f"{s.metric}  {line}\nbest: {_name(best['sigma'], s.at)}{_edge(best, rows)}")
    result = {"run": str(s.run), "protocol": chosen.record(), "metric": s.metric, "steps": s.steps, "at": s.at,
              "samples": s.samples, "floor": judge.floor, "best": best, "rows": rows}  # fmt: skip
    out = s.out or s.run / "ema-sweep.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps(result, indent=1))
    return 0


def _judged(s: Ema, judge: Judge, sigmas: list[float], device: Any) -> Iterator[dict[str, float]]:
    """A row for each length, all from the same noise."""
    for sigma in sigmas:
        net = load(s.run, ema=_name(sigma, s.at), device=device)
        check_fits(judge.protocol, net, s.run)
        found = judge.row(net, steps=s.steps, samples=s.samples, weights=_name(sigma, s.at)).metrics[s.metric]
        if not math.isfinite(found):
            raise FloatingPointError(f"{s.metric} of the average of length {sigma:g} is not finite")
        yield {"sigma": sigma, s.metric: found, "profile_error": profile_error(s.run, sigma, s.at)}


def _name(sigma: float, at: int | None) -> str:
    """As `--ema` takes it, to six digits."""
    return f"power:{sigma:.6g}" + (f"@{at}" if at is not None else "")


def _edge(best: dict[str, float], rows: list[dict[str, float]]) -> str:
    return "; it is at the end of the sweep, a wider one may find better" if best in (rows[0], rows[-1]) else ""
