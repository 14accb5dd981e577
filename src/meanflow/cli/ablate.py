"""meanflow ablate."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from ..data.files import write_text
from ..recipes import Recipe
from ..recipes.ablations import (
    default_workers,
    figure,
    finished_of,
    markdown,
    open_subject,
    plan,
    run_all,
    summary,
    tables,
)
from ..recipes.ablations.figure import require_matplotlib
from .words import at_least_one, numbers, parse


@dataclass
class Ablate:
    """Repeat the ablations of the paper's table 1 at a small scale, and set them beside the paper's figures.

    Every configuration is an ordinary run in a folder of its own under --out; what is finished is not run again, so
    the same command goes on where an interrupted one stopped. Writes ablations.json, .md and .png.
    """

    data: tyro.conf.Positional[str]
    """digits, or a folder with the four .gz files of MNIST or Fashion-MNIST."""
    tables: str = "a,b,c,d,e,f"
    """Parts of table 1: a share of r != t, b tangent, c conditioning, d times, e power p, f guidance."""
    seeds: str = "0,1,2"
    """Seeds; each configuration runs once with each."""
    images: int | None = None
    """Images that each run sees; by default what the base recipe of the data says."""
    samples: int = 2000
    """Samples that each run is judged on."""
    jobs: int | None = None
    """Runs at the same time, one thread each; by default as many as there are cores."""
    out: Path | None = None
    """Folder for the runs and the report; by default runs/ablations- and the name of the data."""
    report_only: bool = False
    """Run nothing, report what is finished: also while another process is running the study."""
    no_figure: bool = False
    """Write no PNG (matplotlib is not needed then)."""


def run(words: list[str]) -> int:
    """Run what is missing of a study and report it."""
    s = parse(Ablate, words, "ablate")
    wanted, seeds = tables(s.tables.split(",")), numbers(s.seeds, "seeds")
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"--seeds must differ, got {s.seeds}; the same seed twice is the same run twice")
    workers = default_workers() if s.jobs is None else s.jobs
    at_least_one(jobs=workers)
    if s.samples < 100:
        raise ValueError(f"samples must be at least 100, got {s.samples}")
    if not s.no_figure:
        require_matplotlib()
    subject = open_subject(s.data)
    base = _base(subject.base, s.images)
    out = s.out or Path("runs") / f"ablations-{Path(s.data).absolute().name}"
    if out.is_file():
        raise ValueError(f"{out} is a file; a study needs a folder, choose another --out")
    jobs = plan(s.data, base, wanted, seeds, s.samples, out)
    if s.report_only:
        results = finished_of(jobs)
        if not results:
            raise ValueError(f"nothing of this study is finished in {out}; leave out --report-only to run it")
    else:
        print(f"{len(jobs)} runs of {base.training.images:,} images on {subject.title}, {workers} at a time, in {out}")
        results = run_all(jobs, workers, lambda text: print(text, flush=True))
    _write(summary(subject, base, wanted, results, s.samples), out, not s.no_figure)
    return 0


def _base(base: Recipe, images: int | None) -> Recipe:
    return base if images is None else replace(base, training=replace(base.training, images=images))


def _write(found: dict[str, Any], out: Path, draw: bool) -> None:
    write_text(out / "ablations.json", json.dumps(found, indent=1))
    write_text(out / "ablations.md", markdown(found))
    names = "ablations.json and ablations.md"
    if draw:
        names = f"{names}, and {figure(found, out / 'ablations.png').name}"
    print(f"{markdown(found)}\nwritten: {names} in {out}")
