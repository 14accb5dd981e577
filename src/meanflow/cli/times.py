"""Times that are searched for a run and remembered in its folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.sampling import guided
from ..data.files import write_text
from ..evaluation import Schedule, search_times
from ..evaluation.one_call import drawn
from ..evaluation.schedule import most_calls, weights_hash

FILE = "times.json"
# Our choice: noise that nothing else here uses, enough rows that the mean distance is known to some per cent.
FIRST_SEED, ROWS = 3_000_000, 256
MANY, GRID = 64, 32


def auto_steps(text: str) -> int:
    """Network calls of --times auto (2) or auto:4; raises ValueError for anything else."""
    word, colon, number = text.partition(":")
    if word != "auto" or (colon and not number.isdigit()):
        raise ValueError(f"--times takes decreasing times such as 1,0.5,0, or auto, or auto:4; got {text!r}")
    return int(number) if colon else 2


def auto_times(run: Path, net: nn.Module, steps: int, guidance: float | None, device: torch.device) -> Schedule:
    """The best times for `steps` calls of these weights, from the run folder or searched and written there."""
    settings = {"steps": steps, "guidance": guidance, "many": MANY, "grid": GRID, "rows": ROWS, "seed": FIRST_SEED}
    key = {"weights": weights_hash(net), **settings}
    # weights from a hub are no folder of the user's to write into, and would hide behind one
    file = run / FILE if run.is_dir() else None
    known = _known(file) if file is not None else []
    for entry in known:
        if entry["for"] == key:
            return Schedule(**{**entry["schedule"], "times": tuple(entry["schedule"]["times"])})
    print(f"searching times: at most {most_calls(steps, MANY, GRID)} network calls of {ROWS // 2} rows each")
    noise, cond = drawn(net, ROWS, FIRST_SEED, device)
    field = guided(net, guidance)
    found = search_times(field, steps, noise, cond, many=MANY, grid=GRID)
    if file is not None:
        write_text(file, json.dumps([*known, {"for": key, "schedule": asdict(found)}], indent=1))
    return found


def _known(file: Path) -> list[dict[str, Any]]:
    """The entries of a file that this module wrote; a damaged one is nothing lost."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        return [e for e in entries if e["for"]["weights"] and len(e["schedule"]["times"]) > 1]
    except (OSError, ValueError, TypeError, KeyError):
        return []
