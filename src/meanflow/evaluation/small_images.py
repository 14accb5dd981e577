"""Results of the digits as one table, with the protocol under it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from .judge import FIRST_SEED, Judge

COLUMNS = {
    "calls": "steps",
    "Frechet": "frechet",
    "floor": "floor",
    "agreement": "agreement",
    "nearest train": "nearest",
    "held-out": "nearest_held_out",
}


def evaluate_digits(
    nets: dict[str, nn.Module], steps: list[int], *, samples: int = 2000, first_seed: int = FIRST_SEED
) -> dict[str, Any]:
    """Rows for every net and number of calls, with the protocol they follow; JSON-able."""
    judge = Judge("digits")
    rows = []
    for name, net in nets.items():
        for n in steps:
            result = judge.row(net, steps=n, samples=samples, first_seed=first_seed)
            floor = {"floor": result.floor["frechet"], "nearest_held_out": result.floor["nearest"]}
            rows.append({"run": name, "steps": n, **result.metrics, **floor})
    return {"protocol": {**judge.protocol.record(), "samples": samples, "first_seed": first_seed}, "rows": rows}


def table(result: dict[str, Any]) -> str:
    """The rows as an aligned text table with the protocol under it."""
    lines = [
        ("run", *COLUMNS),
        *((Path(r["run"]).name, *(_cell(r[key]) for key in COLUMNS.values())) for r in result["rows"]),
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    p = result["protocol"]
    return "\n".join(
        [
            *text,
            "",
            f"protocol {p['name']}: {p['samples']} samples, {p['labels']} labels, {p['about']}; "
            f"classifier right on {1 - p['error']:.1%} of them",
        ]
    )


def _cell(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"
