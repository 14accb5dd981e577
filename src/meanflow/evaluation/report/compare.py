"""Runs side by side: the same seeds, the same protocol, differences with intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch

from ...data.files import write_text
from ..metrics import resampled
from ..result import Result
from .names import figure, interval, meaning
from .page import Page, Section, facts, html, paragraph, scrolling, strips
from .samples import TILES, calls
from .subject import Subject, conditions, draw, noise_of
from .tables import RESAMPLES, Row, html_table, protocol_line, text_table, with_intervals
from .tiles import sheet
from .write import calls_chart, finite, rows_as_json

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """Second minus first of a metric, with a bootstrap interval; paired: whether both were resampled together.

    clear: whether the interval leaves out zero. better: name of the better one where it is clear and the metric says
    which way is better, else None.
    """

    metric: str
    first: str
    second: str
    steps: int | None
    value: float
    low: float
    high: float
    paired: bool
    clear: bool
    better: str | None


@dataclass(frozen=True)
class Comparison:
    """Rows of several runs under one protocol, and the differences of each to the first."""

    rows: Sequence[Row]
    differences: Sequence[Difference]
    resamples: int = RESAMPLES


def compare(rows: Sequence[Row], *, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Differences of every row to the row of the first name with as many calls.

    Raises ValueError for results of different protocols, and for fewer than two names.
    """
    check_comparable(rows)
    names = list(dict.fromkeys(row.name for row in rows))
    if len(names) < 2:
        raise ValueError(f"a comparison needs at least two runs, got {', '.join(names) or 'none'}")
    found = []
    for row in (r for r in rows if r.name != names[0]):
        base = _partner(row, [r for r in rows if r.name == names[0]])
        if base is None:
            continue
        for metric in with_intervals(row.result):
            if metric in base.result.estimates:
                found.append(difference(base, row, metric, resamples, seed))
    return Comparison(rows, found, resamples)


def _partner(row: Row, candidates: Sequence[Row]) -> Row | None:
    """The row with as many calls; of several the one with the same weights."""
    alike = [r for r in candidates if r.result.steps == row.result.steps]
    return next((r for r in alike if r.result.weights == row.result.weights), alike[0] if alike else None)


def check_comparable(rows: Sequence[Row]) -> None:
    """ValueError that says in what the protocols of two results differ."""
    first = rows[0]
    for row in rows[1:]:
        unlike = [f"{name}: {a} against {b}" for name, a, b in _pairs(first.result, row.result) if a != b]
        if unlike:
            raise ValueError(
                f"{first.name} and {row.name} cannot be compared, their protocols differ in " + "; ".join(unlike)
            )


def difference(first: Row, second: Row, metric: str, resamples: int = RESAMPLES, seed: int = 0) -> Difference:
    """Difference of a metric with its interval.

    Sample i of both comes from the same seed and class and meets the same reference, so where they have as many items
    the same items are drawn for both: what they share cancels.
    """
    a, b = first.result.estimates[metric], second.result.estimates[metric]
    paired = len(a.items) == len(b.items) and first.result.seed == second.result.seed is not None
    draws = resampled(b, resamples, seed) - resampled(a, resamples, seed if paired else seed + 1)
    value = second.result.metrics[metric] - first.result.metrics[metric]
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    # Resampling repeats rows, which moves distances; their spread is laid around the difference itself.
    low, high = (torch.quantile(draws, ends) - draws.mean() + value).tolist()
    clear = low > 0 or high < 0
    way = meaning(metric).better
    better = (second.name if (value < 0) == (way == "lower") else first.name) if clear and way != "floor" else None
    return Difference(
        metric, first.name, second.name, second.result.steps, value, low, high, paired, clear, better
    )  # fmt: skip


def difference_cells(comparison: Comparison) -> list[list[str]]:
    """Head and lines of the table of differences as text."""
    cells = [["difference", "calls", "metric", "value", "95 % interval", "beyond noise"]]
    for d in comparison.differences:
        verdict = f"yes, {d.better} is better" if d.better else ("yes" if d.clear else "no")
        calls_ = "–" if d.steps is None else str(d.steps)
        value = f"{'+' if d.value > 0 else ''}{figure(d.value)}"
        cells.append(
            [f"{d.second} − {d.first}", calls_, meaning(d.metric).name, value, interval((d.low, d.high)), verdict]
        )
    return cells


def comparison_text(comparison: Comparison) -> str:
    """Both tables for a terminal."""
    cells = difference_cells(comparison)
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([text_table(comparison.rows), "", *lines, "", _how(comparison)])


def comparison_record(comparison: Comparison, command: str) -> dict[str, Any]:
    """Rows, protocol and differences."""
    return finite(
        {
            "format": 1,
            "kind": "comparison",
            "command": command,
            **rows_as_json(comparison.rows),
            "differences": [vars(d) for d in comparison.differences],
        }
    )


def write_comparison(
    comparison: Comparison, subjects: Sequence[Subject], steps: Sequence[int], command: str, folder: Path
) -> Path:
    """Write comparison.json and index.html into a folder and return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "comparison.json", json.dumps(comparison_record(comparison, command), indent=1))
    names = list(dict.fromkeys(row.name for row in comparison.rows))
    page = Page(
        kicker="meanflow comparison",
        title=" / ".join(names),
        lead=_lead(comparison),
        under=protocol_line(comparison.rows),
        sections=[
            _results(comparison),
            *_pictures(subjects, steps),
            Section("judged", "What was judged", _judged(subjects) + f"<h3>Repeat it</h3><pre>{escape(command)}</pre>"),
        ],
        foot="All figures are also in comparison.json beside this page, which holds no script and fetches nothing.",
    )
    write_text(folder / "index.html", html(page))
    return folder / "index.html"


def _pairs(a: Result, b: Result) -> list[tuple[str, Any, Any]]:
    """Fields of two protocols with the number and the first seed of samples."""
    one, two = a.protocol.record(), b.protocol.record()
    fields = [(name.replace("_", " "), one.get(name), two.get(name)) for name in {**one, **two}]
    return [*fields, ("samples drawn", a.samples, b.samples), ("first seed", a.seed, b.seed)]


def _how(comparison: Comparison) -> str:
    paired = all(d.paired for d in comparison.differences)
    which = "paired: the same seeds and reference are drawn for both" if paired else "not paired"
    seen = {row.result.images for row in comparison.rows}
    unequal = " The runs have seen different numbers of images." if len(seen) > 1 else ""
    how = f"{comparison.resamples} draws over samples ({which})"
    return f"Differences with 95 % bootstrap intervals of {how}; one training each.{unequal}"


def _lead(comparison: Comparison) -> str:
    if not comparison.differences:
        return "No number of calls is common to two runs."
    d = comparison.differences[0]
    title = next(r for r in comparison.rows if r.name == d.second).result.title(d.metric)
    verdict = f"{d.better} is better beyond noise" if d.better else "the difference is within the noise of sampling"
    if d.clear and not d.better:
        verdict = "they differ beyond noise"
    how = "" if d.steps is None else f" with {calls(d.steps)}"
    return f"{title}{how}: {d.second} minus {d.first} is {figure(d.value)} ({interval((d.low, d.high))}); {verdict}."


def _results(comparison: Comparison) -> Section:
    cells = difference_cells(comparison)
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in cells[0])
    lines = "".join(
        f'<tr><th scope="row">{escape(line[0])}</th>'
        + "".join(f'<td class="keep">{escape(c)}</td>' for c in line[1:])
        + "</tr>"
        for line in cells[1:]
    )
    table = f'<table class="numbers differences"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'
    body = scrolling(html_table(comparison.rows), "Results")
    body += calls_chart(comparison.rows) + "<h3>Differences</h3>" + scrolling(table, "Differences")
    body += paragraph(_how(comparison) + " What another training would give is not in them.", "note")
    return Section("results", "Results", body)


def _pictures(subjects: Sequence[Subject], steps: Sequence[int]) -> list[Section]:
    """Strips of every run from the same noise and classes, for each number of calls."""
    alike = len({s.shape for s in subjects}) == 1 and len({s.classes for s in subjects}) == 1
    if not subjects or not alike or not all(s.draws_images for s in subjects):
        return []
    noise, cond = noise_of(subjects[0], 2 * TILES), conditions(subjects[0], 2 * TILES)
    body = ""
    for n in sorted(set(steps)):
        rows = []
        for s in subjects:
            alt = f"{2 * TILES} samples of {s.name} with {calls(n)} each, from the same noise as the other runs"
            rows.append((s.name, sheet(draw(s, noise, cond, n), TILES, alt)))
        body += strips(rows, f"{calls(n)}; the same noise and classes for every run")
    return [Section("samples", "The same noise", body)]


def _judged(subjects: Sequence[Subject]) -> str:
    return "".join(f"<h3>{escape(s.name)}</h3>{facts(s.about)}" for s in subjects)
