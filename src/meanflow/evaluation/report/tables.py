"""Results as tables: for a page, for markdown, for a terminal. No figure goes without its protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from ..result import Result
from .names import ARROWS, figure, interval, meaning

Interval = tuple[float, float]
RESAMPLES = 200  # this and the next are our choice
ALL_PAIRS = ("kid", "mmd")  # they compare all pairs of features many times over: hours with hundreds of draws
MOST_WORK = 5e12  # multiplications: minutes of a CPU; 10,000 samples of 1,024 features are below it


@dataclass(frozen=True)
class Row:
    """A result with the name of what was judged, where it lies, and the intervals of its metrics."""

    name: str
    result: Result
    intervals: dict[str, Interval] = field(default_factory=dict)
    source: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        result: Result,
        source: str = "",
        resamples: int | None = None,
        metrics: Sequence[str] | None = None,
    ) -> Row:
        """With bootstrap intervals, 95 %, where the result still has its samples.

        resamples: 0 for none; None for 200, or none where they would take long. metrics: those that get an interval.
        """
        names = [m for m in with_intervals(result) if metrics is None or m in metrics]
        draws = {m: resamples_for(result.estimates[m].items.shape) if resamples is None else resamples for m in names}
        ends = {m: result.interval(m, resamples=n) for m, n in draws.items() if n > 0}
        return cls(name, result, ends, source or name)


def with_intervals(result: Result) -> list[str]:
    """Metrics that can be resampled in reasonable time."""
    return [m for m in result.metrics if m in result.estimates and m not in ALL_PAIRS]


def resamples_for(shape: Sequence[int]) -> int:
    """Bootstrap draws for items of this shape: none where covariances of so many features would take many minutes."""
    return RESAMPLES if RESAMPLES * shape[0] * math.prod(shape[1:]) ** 2 <= MOST_WORK else 0


def metric_names(rows: Sequence[Row]) -> list[str]:
    """Metrics of all rows, in the order of the protocol."""
    return list(dict.fromkeys(m for row in rows for m in row.result.metrics))


def heading(metric: str, rows: Sequence[Row]) -> str:
    """Name of a column: the metric with its number of samples where they agree, and which way is better."""
    titles = {row.result.title(metric) for row in rows if metric in row.result.metrics}
    title = (
        titles.pop() if len(titles) == 1 and metric in ("frechet", "kid", "inception_score") else meaning(metric).name
    )
    return f"{title} {ARROWS[meaning(metric).better]}"


def calls_of(result: Result) -> str:
    """Number of network calls, with the times where they were chosen."""
    if result.steps is None:
        return "–"
    if result.times is None:
        return str(result.steps)
    return f"{result.steps} ({', '.join(f'{t:g}' for t in result.times)})"


def html_table(rows: Sequence[Row]) -> str:
    """Rows with intervals under the values, the floor at the foot; the runs are named where there are several."""
    metrics, several = metric_names(rows), len({row.name for row in rows}) > 1
    names = ["Run", "Weights"] if several else ["Weights"]
    head = "".join(f'<th scope="col">{name}</th>' for name in names) + '<th scope="col" class="n">Calls</th>'
    titles = [escape(heading(m, rows)).replace(" ↓", "&nbsp;↓").replace(" ↑", "&nbsp;↑") for m in metrics]
    head += "".join(f'<th scope="col" class="n">{title}</th>' for title in titles)
    lines = "".join(_html_row(row, metrics, several) for row in rows)
    foot = _foot(rows[0].result.floor, metrics, len(names))
    return (
        '<table class="numbers results"><caption>Small figures: 95 % bootstrap interval over samples</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody>{foot}</table>"
    )


def _foot(floor: dict[str, float], metrics: Sequence[str], names: int) -> str:
    if not floor:
        return ""
    cells = "".join(f'<td class="n">{figure(floor.get(m))}</td>' for m in metrics)
    return f'<tfoot><tr><th scope="row" colspan="{names + 1}">floor: real images</th>{cells}</tr></tfoot>'


def _html_row(row: Row, metrics: Sequence[str], several: bool) -> str:
    weights = escape(row.result.weights)
    names = (
        f'<th scope="row">{escape(row.name)}</th><td>{weights}</td>' if several else f'<th scope="row">{weights}</th>'
    )
    cells = []
    for m in metrics:
        ends = interval(row.intervals.get(m))
        small = f'<span class="ci">{ends}</span>' if ends else ""
        cells.append(f'<td class="n" data-metric="{escape(m)}">{figure(row.result.metrics.get(m))}{small}</td>')
    return f'<tr>{names}<td class="n">{escape(calls_of(row.result))}</td>{"".join(cells)}</tr>'


def markdown_table(rows: Sequence[Row]) -> str:
    """The same as a markdown table with the protocol under it."""
    cells = text_cells(rows)
    lines = ["| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in cells]
    lines.insert(1, "|" + "---|" * 3 + "---:|" * (len(cells[0]) - 3))
    return "\n".join([*lines, "", protocol_line(rows) + _bracketed(rows)])


def text_table(rows: Sequence[Row]) -> str:
    """The same, aligned for a terminal."""
    cells = text_cells(rows)
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(
            c.rjust(w) if i > 2 else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    return "\n".join([*lines, "", protocol_line(rows) + _bracketed(rows)])


def text_cells(rows: Sequence[Row]) -> list[list[str]]:
    """Head, rows and floor as text."""
    metrics = metric_names(rows)
    cells = [["run", "weights", "calls", *(heading(m, rows) for m in metrics)]]
    for row in rows:
        cells.append([row.name, row.result.weights, calls_of(row.result), *(_text(row, m) for m in metrics)])
    floor = rows[0].result.floor
    if floor:
        cells.append(["floor: real images", "", "", *(figure(floor.get(m)) for m in metrics)])
    return cells


def _text(row: Row, metric: str) -> str:
    ends = row.intervals.get(metric)
    value = figure(row.result.metrics.get(metric))
    return value if ends is None else f"{value} ({interval(ends)})"


def _bracketed(rows: Sequence[Row]) -> str:
    return "; in brackets 95 % bootstrap intervals over samples" if any(row.intervals for row in rows) else ""


def protocol_line(rows: Sequence[Row]) -> str:
    """The protocol, and what was allowed against its guards, in a line."""
    p = rows[0].result.protocol
    count = sorted({row.result.samples for row in rows})
    reference = p.reference
    images = f"{reference.count:,} " if reference.count else ""
    allowed = sorted({name for row in rows for name in row.result.allowed})
    line = (
        f"protocol {p.name} v{p.version}: {p.about}; {' and '.join(f'{n:,}' for n in count)} samples, "
        f"labels {p.labels}, reference: {images}{reference.split.replace('_', '-')} images"
    )
    return line + (f"; ALLOWED: {', '.join(allowed)}" if allowed else "")
