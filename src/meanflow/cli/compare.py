"""meanflow compare."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from ..evaluation.report import RESAMPLES, compare, comparison_record, comparison_text, write_comparison
from ..training.parallel import joined
from .judging import NONE, TIMEOUT, Bench, Judging, guards_told
from .words import parse


@dataclass
class Compare(Judging):
    """Put runs side by side: the same seeds, the same protocol, differences with bootstrap intervals.

    Every run is compared with the first. A page with the same noise in every run is written too.
    """


def run(words: list[str]) -> int:
    """Compare runs."""
    s = parse(Compare, words, "compare")
    if len(s.runs) < 2:
        raise ValueError("name at least two runs, e.g. meanflow compare runs/digits runs/digits-unguided")
    if s.protocol == NONE:
        raise ValueError("without a protocol there is nothing to compare; name one, or leave --protocol out")
    if s.resamples == 0:
        raise ValueError("a comparison is made by bootstrap; --resamples must be at least 1 here")
    with joined(TIMEOUT) as world:
        with guards_told():
            bench = Bench(s, "compare", world)
            rows = [row for path in s.runs for row in bench.rows(path)]
        found = compare(rows, resamples=RESAMPLES if s.resamples is None else s.resamples)
        command = f"meanflow compare {shlex.join(words)}"
        if world.first:
            folder = s.out or Path(s.runs[0] if s.runs[0].is_dir() else ".") / "comparison"
            page = write_comparison(found, bench.subjects(), bench.steps, command, folder)
            print(json.dumps(comparison_record(found, command)) if s.json else comparison_text(found))
            if not s.json:
                print(f"comparison: {page}")
    return 0
