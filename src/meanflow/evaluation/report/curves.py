"""Sections drawn from what training wrote down: loss curves, and quality against images seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .charts import Chart, Series, line_chart
from .page import Section, figure
from .subject import LeftOut, Subject

MOST_POINTS = 300  # of a curve; more cannot be seen
LOSSES = (("mse_v", "rows with r = t"), ("mse_u", "rows with r < t"))
OTHERS = (("grad_norm", "Gradient norm"), ("dudt_ratio", "du/dt relative to u"))


def losses(subject: Subject) -> Section:
    """Squared errors, the gradient's norm and the size of du/dt over training."""
    records = [r for r in subject.metrics if isinstance(r.get("images"), int | float)]
    if len(records) < 2:
        raise LeftOut("the run folder holds no metrics.jsonl with at least two lines")
    thinned = _thinned(records)
    charts = []
    errors = [_series(thinned, key, words) for key, words in LOSSES]
    if any(s.x for s in errors):
        charts.append(
            figure(
                _chart("Squared error while training", "mean squared error", errors),
                "Squared error per component before weighting. Rows with r = t are comparable with flow matching; "
                "the weighted loss is left out, for with p = 1 it is about 1 by construction.",
            )
        )
    for key, title in OTHERS:
        if (series := _series(thinned, key, title)).x:
            charts.append(figure(_chart(title, title, [series]), f"{title}, mean between two log lines."))
    if not charts:
        raise LeftOut("metrics.jsonl holds none of the losses that are drawn")
    last = {key: records[-1].get(key) for key, _ in (*LOSSES, *OTHERS) if records[-1].get(key) is not None}
    return Section("training", "Training", f'<div class="pair">{"".join(charts)}</div>', {"last": last})


def quality_over_time(points: Sequence[tuple[int, float, float, float]], title: str, floor: float | None) -> Section:
    """A metric with its interval at each number of images seen: (images, value, low, high)."""
    if len(points) < 2:
        raise LeftOut(
            "fewer than two checkpoints of the run were kept; train with --milestone-every N to keep one every N images"
        )
    ordered = sorted(points)
    x, y, low, high = zip(*ordered, strict=True)
    series = Series("1 call", x, y, low, high)
    drawn = line_chart(
        Chart(
            f"{title} against images seen", "images seen", title, [series], _floor(floor), log_x=_wide(x), log_y=True,
        )
    )  # fmt: skip
    data = [{"images": i, "value": v, "low": a, "high": b} for i, v, a, b in ordered]
    note = "One network call, at every checkpoint that was kept; the band is the 95 % interval over samples."
    return Section("history", "Quality against images seen", figure(drawn, note), data)


def quality_over_calls(rows: Sequence[tuple[str, int, float, float, float]], title: str, floor: float | None) -> str:
    """Chart of a metric against network calls for one or several runs: (name, calls, value, low, high)."""
    names = list(dict.fromkeys(name for name, *_ in rows))
    series = []
    for name in names:
        _, x, y, low, high = zip(*sorted(r for r in rows if r[0] == name), strict=True)
        series.append(Series(name, x, y, low, high))
    ticks = sorted({r[1] for r in rows})
    return line_chart(
        Chart(
            f"{title} against network calls", "network calls per sample", title, series, _floor(floor),
            log_x=True, log_y=True, ticks=ticks,
        )
    )  # fmt: skip


def _floor(value: float | None) -> dict[str, float]:
    return {} if value is None else {"floor: real images": value}


def _wide(x: Sequence[float]) -> bool:
    """Whether checkpoints are spread over more than a factor of 30, so that a linear axis would press them together."""
    return min(x) > 0 and max(x) / min(x) > 30


def _chart(title: str, label: str, series: Sequence[Series]) -> str:
    shown = [s for s in series if s.x]
    return line_chart(Chart(title, "images seen", label, shown, log_y=all(v > 0 for s in shown for v in s.y)))


def _series(records: Sequence[dict[str, Any]], key: str, name: str) -> Series:
    kept = [r for r in records if isinstance(r.get(key), int | float)]
    return Series(name, [float(r["images"]) for r in kept], [float(r[key]) for r in kept])


def _thinned(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    every = -(-len(records) // MOST_POINTS)
    return records[::every] + ([records[-1]] if (len(records) - 1) % every else [])
