"""The report of a run: report.json with everything, report.md with the table, index.html to read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ...data.files import write_text
from ..result import Result
from .curves import losses, quality_over_calls, quality_over_time
from .diagnosis import diagnosis
from .field import field, points
from .names import figure as shown
from .names import interval, meaning
from .neighbours import neighbours
from .page import Page, Section, facts, figure, html, paragraph, scrolling, standalone
from .samples import by_calls, by_class, calls, interpolations
from .subject import LeftOut, Subject
from .tables import Row, html_table, markdown_table, metric_names, protocol_line

FORMAT = 1


@dataclass(frozen=True)
class Report:
    """What a report is made from.

    rows: results of the subject and of what it is to be seen beside, the subject's first. history: results with one
    call at earlier checkpoints. extra: further sections. no_rows: why there are no results, where there are none.
    """

    subject: Subject
    rows: Sequence[Row]
    command: str
    steps: Sequence[int]
    history: Sequence[Row] = ()
    extra: Sequence[Section] = ()
    no_rows: str = ""


def write_report(report: Report, folder: Path) -> Path:
    """Write the three files into a folder and return the page's path."""
    sections, left_out = _sections(report)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.json", json.dumps(as_json(report, sections, left_out), indent=1))
    write_text(folder / "report.md", as_markdown(report))
    write_text(folder / "index.html", html(_page(report, sections, left_out)))
    return folder / "index.html"


def as_json(report: Report, sections: Sequence[Section], left_out: dict[str, str]) -> dict[str, Any]:
    """Everything on the page that is a number or a word."""
    return {
        "format": FORMAT,
        "kind": "report",
        "run": report.subject.name,
        "command": report.command,
        "judged": report.subject.about,
        **rows_as_json(report.rows),
        "history": [row_record(row) for row in report.history],
        "sections": {s.key: finite(s.data) for s in sections if s.data is not None},
        "left_out": left_out,
    }


def rows_as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The protocol and the rows that follow it."""
    record = rows[0].result.protocol.record() if rows else None
    return {"protocol": record, "rows": [row_record(row) for row in rows]}


def row_record(row: Row) -> dict[str, Any]:
    """A row with its metrics as they are, floor and intervals beside them."""
    about = {k: v for k, v in row.result.record().items() if k not in ("protocol", "metrics")}
    intervals = {name: list(ends) for name, ends in row.intervals.items()}
    titles = {name: row.result.title(name) for name in row.result.metrics}
    return finite(
        {"run": row.source, "name": row.name, **about, **row.result.metrics, "intervals": intervals, "titles": titles}
    )


def finite(value: Any) -> Any:
    """NaN and infinities as null, which JSON has no other word for."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_markdown(report: Report) -> str:
    """Table, protocol, and the command that repeats it."""
    body = markdown_table(report.rows) if report.rows else report.no_rows
    lines = "\n".join(f"- {name}: {value}" for name, value in report.subject.about.items())
    return f"# {report.subject.name}\n\n{lines}\n\n{body}\n\n    {report.command}\n"


def headline(rows: Sequence[Row]) -> str:
    """The first figure in a sentence, with its interval and floor."""
    row, name = rows[0], metric_names(rows)[0]
    result: Result = row.result
    ends = f" (95 % interval {interval(row.intervals[name])})" if name in row.intervals else ""
    floor = f"; real images reach {shown(result.floor[name])}" if name in result.floor else ""
    how = "for the given images" if result.steps is None else f"with {calls(result.steps)} per sample"
    return f"{result.title(name)} {shown(result.metrics[name])}{ends} {how}{floor}."


def results_section(rows: Sequence[Row]) -> Section:
    """The table, the protocol's line, what each metric means, and the chart over calls where there are several."""
    metrics = metric_names(rows)
    told = "".join(
        f"<li><strong>{escape(meaning(m).name)}</strong>: {escape(meaning(m).words)}</li>"
        for m in metrics
        if meaning(m).words
    )
    notes = sorted({note for row in rows for note in _reasons(row.result)})
    body = scrolling(html_table(rows), "Results")
    body += "".join(paragraph(note, "note") for note in notes) + calls_chart(rows)
    body += f'<details><summary>What the columns mean</summary><ul class="note">{told}</ul></details>' if told else ""
    return Section("results", "Results", body)


def calls_chart(rows: Sequence[Row]) -> str:
    """The first metric against network calls, a line for each run and average; nothing for fewer than two points."""
    metric = metric_names(rows)[0]
    drawn = [r for r in rows if r.result.steps is not None and (r.result.metrics.get(metric) or 0) > 0]
    if len({r.result.steps for r in drawn}) < 2:
        return ""
    several = len({r.result.weights for r in drawn}) > 1
    values = [
        (
            f"{r.name}, {r.result.weights}" if several else r.name,
            r.result.steps or 0,
            r.result.metrics[metric],
            *r.intervals.get(metric, (r.result.metrics[metric],) * 2),
        )
        for r in drawn
    ]
    title = drawn[0].result.title(metric)
    chart = quality_over_calls(values, title, drawn[0].result.floor.get(metric))
    return figure(chart, f"{title} against network calls; bands are 95 % intervals over samples.")


def calls_figure(rows: Sequence[Row]) -> str:
    """The chart over network calls as an SVG file; ValueError where there are fewer than two numbers of calls."""
    chart = calls_chart(rows)
    if not chart:
        raise ValueError("the figure needs rows with at least two numbers of calls, e.g. --steps 1,2,4,8,32,128")
    return standalone(chart[chart.index("<svg") : chart.index("</svg>") + len("</svg>")])


def protocol_section(report: Report) -> Section:
    """What was judged, the protocol in full, and the command that repeats it."""
    body = facts(report.subject.about)
    if report.rows:
        body += "<h3>Protocol</h3>" + facts(_flat(report.rows[0].result.protocol.record()))
        seeds = sorted({str(r.result.seed) for r in report.rows if r.result.seed is not None})
        body += paragraph(f"Seed of the first sample: {', '.join(seeds)}.", "note") if seeds else ""
    else:
        body += paragraph(report.no_rows)
    body += f"<h3>Repeat it</h3><pre>{escape(report.command)}</pre>"
    return Section("judged", "What was judged", body)


def _sections(report: Report) -> tuple[list[Section], dict[str, str]]:
    s = report.subject
    makers: list[tuple[str, Callable[[], Section]]] = [
        ("Samples", lambda: points(s) if s.shape == (2,) else by_class(s)),
        ("More calls from the same noise", lambda: by_calls(s, report.steps)),
        ("Nearest training images", lambda: neighbours(s)),
        ("What one call loses", lambda: diagnosis(s)),
        ("Interpolations", lambda: interpolations(s)),
        ("The field u(z, r, t)", lambda: field(s)),
        ("Quality against images seen", lambda: _history(report)),
        ("Training", lambda: losses(s)),
    ]
    sections = [results_section(report.rows)] if report.rows else []
    left_out = {} if report.rows else {"Results": report.no_rows}
    for name, make in makers:
        try:
            sections.append(make())
        except LeftOut as reason:
            left_out[name] = str(reason)
    return [*sections, *report.extra, protocol_section(report)], left_out


def _history(report: Report) -> Section:
    if not report.rows:
        raise LeftOut("there are no figures without a protocol")
    metric = metric_names(report.rows)[0]
    # The newest checkpoint is the first row of the table, if that was one call too.
    rows = [*report.history, *[r for r in report.rows[:1] if r.result.steps == 1]]
    points_ = {
        r.result.images: (r.result.metrics[metric], *r.intervals.get(metric, (r.result.metrics[metric],) * 2))
        for r in rows
        if r.result.images is not None
    }
    found = [(images, *values) for images, values in points_.items()]
    first = report.rows[0].result
    return quality_over_time(found, first.title(metric), first.floor.get(metric))


def _page(report: Report, sections: Sequence[Section], left_out: dict[str, str]) -> Page:
    lead = headline(report.rows) if report.rows else report.no_rows
    return Page(
        kicker="meanflow report",
        title=report.subject.name,
        lead=lead,
        under=protocol_line(report.rows) if report.rows else "",
        sections=sections,
        left_out=left_out,
        foot="All figures are also in report.json beside this page, which holds no script and fetches nothing.",
    )


def _reasons(result: Result) -> list[str]:
    return [f"{meaning(name).name} is left out: {why}" for name, why in result.left_out.items()]


def _flat(record: dict[str, Any]) -> dict[str, str]:
    """A record in words, nested ones by "name: value", empty fields left out."""
    lines = {}
    for name, value in record.items():
        if value is None or value == ():
            continue
        words = ", ".join(f"{k} {v}" for k, v in value.items() if v is not None) if isinstance(value, dict) else value
        lines[name.replace("_", " ")] = ", ".join(map(str, words)) if isinstance(words, (list, tuple)) else str(words)
    return lines
