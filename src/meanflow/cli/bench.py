"""meanflow bench."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from .._hint import did_you_mean
from ..bench import StepSettings, price_sampling, price_step, sampling_table, step_table
from ..data import digits
from ..recipes import build, recipe
from ..training import load
from ..training.run import pick_device
from .words import at_least_one, parse


@dataclass
class BenchStep:
    """Price a training step: FLOPs, peak memory and time as ratios to a flow-matching step of the same network and
    to the authors' algorithm (one derivative over all rows with a graph, guidance calls on all rows)."""

    settings: Annotated[StepSettings, tyro.conf.arg(name="")] = field(default_factory=StepSettings)
    """The step."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass
class BenchSample:
    """Price sampling: samples per second for 1, 2 and 4 calls, as a ratio to the bare network call."""

    run: Path | None = None
    """Run folder; without one, an untrained network of the digits recipe."""
    batch: int = 64
    """Samples per call."""
    rounds: int = 20
    """Interleaved rounds of timing."""
    device: str = "auto"
    """Device: cpu, cuda, or auto for the first GPU where there is one."""
    json: bool = False
    """Print one JSON object instead of a table."""


def run(words: list[str]) -> int:
    """Price a training step or sampling."""
    kinds: dict[str, Any] = {"step": BenchStep, "sample": BenchSample}
    if not words or words[0] not in kinds:
        if words and words[0] not in ("-h", "--help"):
            raise ValueError(
                f"unknown benchmark {words[0]!r}{did_you_mean(words[0], kinds)}; use bench step or bench sample"
            )
        print("usage: meanflow bench step --help     the price of a training step\n"
              "       meanflow bench sample --help   the price of sampling")  # fmt: skip
        return 0
    s = parse(kinds[words[0]], words[1:], f"bench {words[0]}")
    if words[0] == "step":
        at_least_one(batch=s.settings.batch, rounds=s.settings.rounds)
        result, text = price_step(replace(s.settings, device=str(pick_device(s.settings.device)))), step_table
    else:
        at_least_one(batch=s.batch, rounds=s.rounds)
        net = load(s.run) if s.run else build(recipe("digits"), digits()).net
        result, text = (
            price_sampling(net, batch=s.batch, rounds=s.rounds, device=str(pick_device(s.device))),
            sampling_table,
        )
    print(json.dumps(result) if s.json else text(result))
    return 0
