"""The table: ours, mean and spread over the seeds, beside the paper's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from statistics import mean, stdev
from typing import Any

from ..config import Recipe
from .study import Finished
from .subjects import Subject
from .table1 import Table, Value, names


def summary(
    subject: Subject, base: Recipe, tables: Sequence[Table], results: Sequence[Finished], samples: int
) -> dict[str, Any]:
    """All figures of a study, JSON-able.

    pairs: of all pairs of values in a table, and of those whose means differ by more than two standard errors
    ("clear"; None with a single seed), how many we order as the paper does.
    """
    named = names(base)
    rows = [
        {
            "letter": table.letter,
            "title": table.title,
            "chosen": table.chosen,
            "values": (values := [_value(v, named[v.change(base)], results) for v in table.values]),
            "pairs": _pairs(values),
        }
        for table in tables
    ]
    return {
        "subject": subject.title,
        "protocol": f"{subject.protocol}, {samples:,} samples, one network call each, balanced labels",
        "floor": subject.floor,
        "seeds": sorted({result.seed for result in results}),
        "base": asdict(base),
        "paper": "arXiv:2505.13447, table 1: FID-50K, ImageNet 256x256, B/4, one network call",
        "tables": rows,
    }


def markdown(s: dict[str, Any]) -> str:
    """The summary as Markdown: a table for each part of the paper's table 1."""
    training = s["base"]["training"]
    head = [
        f"# Ablations on {s['subject']}",
        "",
        f"Distance: {s['protocol']}; lower is better, {s['floor']:.3f} is what the training images reach.",
        f"{_seeds(s['seeds'])}; every run sees {training['images']:,} images in batches of {training['batch']}. "
        "Agreement: share of samples that a classifier recognises as the asked class.",
        f"Paper: {s['paper']}. Bold: the paper's choice.",
    ]
    return "\n".join(head + [line for table in s["tables"] for line in _table(table, len(s["seeds"]))]) + "\n"


def _table(table: dict[str, Any], seeds: int) -> list[str]:
    lines = ["", f"## {table['letter']}: {table['title']}", ""]
    lines += [f"| {table['title']} | distance | agreement | paper, FID |", "|---|---|---|---|"]
    for value in table["values"]:
        label = f"**{value['label']}**" if value["label"] == table["chosen"] else value["label"]
        figures = [_spread(value["frechet"]), _spread(value["agreement"])]
        if value["diverged"]:
            figures[0] += f" ({value['diverged']} diverged)"
        if (runs := len(value["frechet"]["values"]) + value["diverged"]) < seeds:
            figures[0] += f" ({runs} of {seeds} seeds)"
        lines.append(f"| {label} | {figures[0]} | {figures[1]} | {value['paper']:.2f} |")
    return [*lines, "", _sentence(table["pairs"])]


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"One run of each value, seed {seeds[0]}"
    return f"Mean and standard deviation over seeds {', '.join(map(str, seeds))}"


def _sentence(pairs: dict[str, Any]) -> str:
    text = f"{pairs['same']} of {pairs['all']} pairs are ordered as in the paper"
    if pairs["clear"] is None:
        return f"{text}; what differs by chance only, one seed cannot tell."
    if pairs["clear"] == 0:
        return f"{text}; none differs by more than two standard errors."
    return f"{text}; of the {pairs['clear']} that differ by more than two standard errors, {pairs['clear_same']}."


def _value(value: Value, run: str, results: Sequence[Finished]) -> dict[str, Any]:
    mine = sorted((r for r in results if r.name == run), key=lambda r: r.seed)
    return {
        "label": value.label,
        "run": run,
        "paper": value.fid,
        "frechet": _statistics([r.frechet for r in mine if r.frechet is not None]),
        "agreement": _statistics([r.agreement for r in mine if r.agreement is not None]),
        "diverged": sum(r.diverged is not None for r in mine),
    }


def _statistics(values: list[float]) -> dict[str, Any]:
    """Mean, standard deviation (None for fewer than two values) and the values themselves."""
    return {
        "mean": mean(values) if values else None,
        "std": stdev(values) if len(values) > 1 else None,
        "values": values,
    }


def _pairs(values: Sequence[dict[str, Any]]) -> dict[str, int | None]:
    counts: dict[str, int] = {"all": 0, "same": 0, "clear": 0, "clear_same": 0}
    for one, two in combinations([v for v in values if v["frechet"]["values"]], 2):
        a, b = one["frechet"], two["frechet"]
        same = (a["mean"] < b["mean"]) == (one["paper"] < two["paper"])
        clear = abs(a["mean"] - b["mean"]) > 2 * _error(a, b)
        for name, counted in (("all", True), ("same", same), ("clear", clear), ("clear_same", clear and same)):
            counts[name] += counted
    if all(value["frechet"]["std"] is None for value in values):
        return {**counts, "clear": None, "clear_same": None}
    return dict(counts)


def _error(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Standard error of the difference of two means; infinite where one of them is of a single run."""
    if a["std"] is None or b["std"] is None:
        return math.inf
    return math.sqrt(sum(x["std"] ** 2 / len(x["values"]) for x in (a, b)))


def _spread(s: dict[str, Any]) -> str:
    if s["mean"] is None:
        return "none"
    return f"{s['mean']:.3f}" + (f" ± {s['std']:.3f}" if s["std"] is not None else "")
