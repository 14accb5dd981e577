"""meanflow evaluate."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.files import write_text
from ..evaluation.report import Report, Row, calls_figure, rows_as_json, text_table, write_report
from ..training.parallel import joined
from .judging import TIMEOUT, Bench, Judging, guards_told
from .words import first_process, numbers, parse


@dataclass
class Evaluate(Judging):
    """Say in numbers how good runs are, a row for each run and number of network calls, and write a report.

    The report is a folder with a page to read (index.html), a table (report.md) and everything for programs
    (report.json). Started by torchrun, the processes share the samples.
    """

    figure: Path | None = None
    """Write the first figure of quality against network calls as an .svg, e.g. with --steps 1,2,4,8,32,128."""
    no_history: bool = False
    """Do not judge the earlier checkpoints of the run."""
    no_report: bool = False
    """Print figures only."""


def run(words: list[str]) -> int:
    """Judge runs."""
    s = parse(Evaluate, words, "evaluate")
    if s.figure is not None and s.figure.suffix != ".svg":
        raise ValueError(f"--figure draws an .svg, got {s.figure}")
    if s.figure is not None and len(set(numbers(s.steps, "steps"))) < 2:
        raise ValueError("--figure needs at least two numbers of calls, e.g. --steps 1,2,4,8,32,128")
    with joined(TIMEOUT) as world:
        with guards_told():
            bench = Bench(s, "evaluate", world)
            rows = {path: bench.rows(path) for path in s.runs}
        every = [row for found in rows.values() for row in found]
        command = f"meanflow evaluate {shlex.join(words)}"
        pages = [] if s.no_report else _reports(s, bench, rows, command)
        if world.first:
            if s.figure is not None:
                s.figure.parent.mkdir(parents=True, exist_ok=True)
                write_text(s.figure, calls_figure(every))
            _print(s, every, pages)
    return 0


def _reports(s: Evaluate, bench: Bench, rows: dict[Path, list[Row]], command: str) -> list[Path]:
    """A report for each run, its own rows first; every process judges the history, the first one writes."""
    pages = []
    for path, subject in zip(bench.folders, bench.subjects(), strict=True):
        history = [] if s.no_history else bench.history(path, subject)
        others = [row for other, found in rows.items() if other != path for row in found]
        if first_process():
            report = Report(
                subject, [*rows[path], *others], command, bench.steps, history,
                no_rows="no protocol was asked for, so there are no figures",
            )  # fmt: skip
            pages.append(write_report(report, _folder(s, path, subject.name)))
    return pages


def _folder(s: Evaluate, path: Path, name: str) -> Path:
    if s.out is None:
        return path / "report"
    return s.out if len(s.runs) == 1 else s.out / name.strip("/").replace("/", "-")


def _print(s: Evaluate, rows: Sequence[Row], pages: Sequence[Path]) -> None:
    if s.json:
        print(json.dumps(rows_as_json(rows)))
        return
    print(text_table(rows) if rows else "no protocol was asked for, so there are no figures")
    for page in pages:
        print(f"report: {page}")
