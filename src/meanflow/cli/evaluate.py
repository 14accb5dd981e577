"""meanflow evaluate."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from ..evaluation import evaluate_digits, table
from ..training import load
from ..training.checkpoint import write_text
from ..training.run import pick_device, read_config
from .words import numbers, parse


@dataclass
class Evaluate:
    """Say in numbers how good runs are: a row for each run and number of network calls."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, e.g. a run and its flow-matching baseline."""
    steps: str = "1,2,4"
    """Numbers of network calls."""
    protocol: Literal["digits"] | None = None
    """How to judge; by default what belongs to the data of each run. Converted runs do not know their data."""
    samples: int = 2000
    """Samples drawn for each row."""
    ema: float | str | None = None
    """Decay of the averaged weights to use, each run's first by default; power:0.075 rebuilds one of that length."""
    json: bool = False
    """Print one JSON object instead of a table."""
    device: str = "auto"
    """Device: cpu, cuda, or auto for the first GPU where there is one."""


def run(words: list[str]) -> int:
    """Judge runs."""
    s = parse(Evaluate, words, "evaluate")
    steps, device = numbers(s.steps, "steps"), pick_device(s.device)
    if not s.runs:
        raise ValueError("name at least one run folder, e.g. meanflow evaluate runs/digits")
    if min(steps) < 1 or s.samples < 100:
        raise ValueError(f"steps must be at least 1 and samples at least 100, got {steps} and {s.samples}")
    nets = {}
    for folder in s.runs:
        source = str(read_config(folder)["data"].get("source"))
        if s.protocol is None and not source.startswith("digits"):
            raise ValueError(
                f"{folder} was trained on {source}; evaluate knows the protocol of digits so far. If it makes such "
                "digits all the same, say --protocol digits"
            )
        net = nets[str(folder)] = load(folder, ema=s.ema, device=device)
        if tuple(net.shape) != (1, 8, 8) or net.null != 10:  # type: ignore[arg-type]
            raise ValueError(
                f"the protocol digits is for samples (1, 8, 8) of 10 classes, {folder} makes {tuple(net.shape)} "  # type: ignore[arg-type]
                f"of {net.null} classes"
            )
    result = evaluate_digits(nets, steps, samples=s.samples)
    write_text(s.runs[0] / "evaluation.json", json.dumps(result, indent=1))
    print(json.dumps(result) if s.json else table(result))
    return 0
