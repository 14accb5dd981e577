"""meanflow status."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from ..training.checkpoint import CheckpointError, checkpoints, read_state
from ..training.log import read_metrics
from ..training.run import is_locked, read_config
from .words import parse

BARS = "▁▂▃▄▅▆▇█"
COLUMNS = 48  # of a sparkline; our choice
# In this order; a run may lack some. Loss last: with p = 1 it is about 1 by construction.
PARTS = ("mse_v", "mse_u", "dudt_ratio", "grad_norm", "weight", "loss")


@dataclass
class Status:
    """Say in one screen where a run stands: progress, speed, time left, checkpoints, and its loss parts as lines.

    Reads files only, so it can be asked at any time and from any machine that sees the folder.
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""


def run(words: list[str]) -> int:
    """Print where a run stands."""
    folder: Path = parse(Status, words, "status").run
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; name the folder of a run, e.g. runs/digits")
    print("\n".join(f"{name:<11} {text}".rstrip() for name, text in lines(folder)))
    return 0


def lines(folder: Path) -> list[tuple[str, str]]:
    """Pairs of a name and what there is to say about it."""
    if not any(folder.iterdir()):
        return [("run", f"{folder} is empty: no run has begun in it")]
    config, trouble = _read(lambda: read_config(folder), (ValueError, OSError))
    records, trouble_too = _read(lambda: read_metrics(folder), (OSError,))
    saved = checkpoints(folder / "checkpoints")
    total = _number((config or {}).get("training"), "images")
    last: dict[str, Any] = records[-1] if records else {}
    seen = max([_number(last, "images") or 0, *(int(p.name) for p in saved[-1:] if p.name.isdigit())])
    found = [("run", f"{folder}: {_condition(folder, seen, total)}")]
    found += [("damaged", str(error)) for error in (trouble, trouble_too) if error is not None]
    found += [(f"own {what}", f"{code['name']} in {code['path']}") for what, code in _own(config)]
    found += [("images", _progress(seen, total)), *_speed(folder, last), ("checkpoint", _checkpoint(saved))]
    found += [("skipped", f"{last['skipped']:,} steps whose gradient was not finite")] if last.get("skipped") else []
    if (folder / "diagnosis.txt").exists():
        found.append(("diagnosis", str(folder / "diagnosis.txt")))
    found += [(name, line) for name in PARTS if (line := trend([r.get(name) for r in records or []]))]
    grids = sorted((folder / "grids").glob("[0-9]*.png"))
    return [*found, ("grid", str(grids[-1]) if grids else "none yet")]


def _own(config: dict[str, Any] | None) -> list[tuple[str, dict[str, str]]]:
    """The user's own code that a run was trained with."""
    code = (config or {}).get("code")
    return [
        (what, record)
        for what, record in (code.items() if isinstance(code, dict) else [])
        if isinstance(record, dict) and {"name", "path"} <= record.keys()
    ]


def trend(values: list[Any]) -> str:
    """A sparkline of the finite values with the first, the last and the smallest in numbers; "" without any."""
    numbers = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
    if not numbers:
        return ""
    width = min(COLUMNS, len(numbers))
    edges = [i * len(numbers) // width for i in range(width + 1)]
    means = [sum(numbers[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    step = (high - low) / (len(BARS) - 1) or 1.0
    line = "".join(BARS[round((m - low) / step)] for m in means)
    return f"{line:<{COLUMNS}} {numbers[0]:.4g} -> {numbers[-1]:.4g}, least {min(numbers):.4g}"


def _condition(folder: Path, seen: int, total: int | None) -> str:
    if is_locked(folder):
        return "running"
    if total is not None and seen >= total:
        return "finished"
    return "stopped; the same train command goes on from the newest checkpoint"


def _progress(seen: int, total: int | None) -> str:
    if not total:
        return f"{seen:,}"
    return f"{min(seen, total):,} of {total:,} ({100 * min(seen / total, 1):.0f} %)"


def _speed(folder: Path, last: dict[str, Any]) -> list[tuple[str, str]]:
    """Speed as of the last record, and the time that is left of a run that is running."""
    speed = _number(last, "images_per_second")
    if speed is None:
        return []
    parts = [f"{speed:,.0f} images/s"]
    if (left := _number(last, "seconds_left")) is not None and is_locked(folder):
        parts.append(f"{tqdm.format_interval(left)} left")
    if (used := _number(last, "utilisation")) is not None:
        parts.append(f"utilisation {100 * used:.1f} %")
    if (memory := _number(last, "memory_gib")) is not None:
        parts.append(f"memory {memory:.2f} GiB")
    return [("speed", ", ".join(parts) + f"; last record {_age(folder / 'metrics.jsonl')}")]


def _checkpoint(saved: list[Path]) -> str:
    """The newest checkpoint whose state can be read; checksums of weights are looked at when a run goes on."""
    for path in reversed(saved):
        state, _ = _read(lambda path=path: read_state(path), (CheckpointError,))  # type: ignore[misc]
        if state is not None:
            newer = len(saved) - 1 - saved.index(path)
            damaged = f"; {newer} newer with a damaged state" if newer else ""
            return f"{path.name}, {_age(path)}, {len(saved)} kept{damaged}"
    return "none whole" if saved else "none yet"


def _age(path: Path) -> str:
    # Clocks differ between machines and can be set back: nothing is younger than now.
    return f"{tqdm.format_interval(max(time.time() - path.stat().st_mtime, 0))} ago"


def _read(reader: Callable[[], Any], errors: tuple[type[Exception], ...]) -> tuple[Any, Exception | None]:
    try:
        return reader(), None
    except errors as error:
        return None, error


def _number(record: Any, name: str) -> Any:
    value = record.get(name) if isinstance(record, dict) else None
    return value if isinstance(value, int | float) and math.isfinite(value) else None
