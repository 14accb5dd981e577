"""Line charts and scatter plots as SVG: no script, no style attributes, colours by class so that a page can be dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 460, 290  # of the drawing in its own units; small, so that text can be read on a phone
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 44
COLOURS = 5  # series s0 to s4 of the style sheet; more begin again with other dashes


@dataclass(frozen=True)
class Series:
    """Points of a line; low and high are the ends of an interval at each point."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Chart:
    """What is drawn: lines over x, and level lines by name such as a floor."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    levels: dict[str, float] = field(default_factory=dict)
    log_x: bool = False
    log_y: bool = False
    ticks: Sequence[float] | None = None
    """Where the x axis is labelled; None chooses."""


class Axis:
    """From values to a length of the drawing."""

    def __init__(self, values: Sequence[float], low: float, high: float, log: bool) -> None:
        self.log, self.low, self.high = log, low, high
        a, b = min(values), max(values)
        if log:
            # As much air as a twentieth of the axis, so that no mark sits on its end.
            air = math.log10(b / a) / 20 or 0.1
            self.a, self.b = math.log10(a) - air, math.log10(b) + air
        else:
            air = (b - a) / 20 or abs(a) / 10 or 1.0
            self.a, self.b = (a if a == 0 else a - air), b + air

    def __call__(self, value: float) -> float:
        place = math.log10(value) if self.log else value
        return self.low + (place - self.a) / (self.b - self.a) * (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values on the axis: of a logarithmic one 1, 2 and 5 times powers of ten."""
        if not self.log:
            return _round_values(self.a, self.b)
        low, high = 10**self.a, 10**self.b
        powers = range(math.floor(self.a), math.ceil(self.b) + 1)
        fine = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
        coarse = [10.0**p for p in powers if low <= 10.0**p <= high]
        if len(fine) < 2:
            return _round_values(low, high)
        return fine if len(fine) <= 7 or len(coarse) < 2 else coarse


def line_chart(chart: Chart) -> str:
    """The chart as an SVG element; raises ValueError when there is nothing finite to draw."""
    series = [s for s in (_drawable(s, chart) for s in chart.series) if s.x]
    if not series:
        raise ValueError(f"there is nothing finite to draw in {chart.title!r}")
    levels = {n: v for n, v in chart.levels.items() if math.isfinite(v) and (v > 0 or not chart.log_y)}
    xs = [v for s in series for v in s.x]
    ys = [v for s in series for v in (*s.y, *s.low, *s.high)] + list(levels.values())
    top = TOP + 16 * len(series) if len(series) > 1 else TOP
    x, y = Axis(xs, LEFT, WIDTH - RIGHT, chart.log_x), Axis(ys, HEIGHT - BOTTOM, top, chart.log_y)
    parts = [_frame(x, y, chart, top), *(_level(n, v, y) for n, v in levels.items())]
    parts += [_line(s, i, x, y) for i, s in enumerate(series)]
    parts += [_legend(s.name, i) for i, s in enumerate(series)] if len(series) > 1 else []
    return svg(chart.title, _told(chart, series, levels), parts)


def svg(title: str, description: str, parts: Sequence[str], width: int = WIDTH, height: int = HEIGHT) -> str:
    """An SVG element that is read aloud by its title and description."""
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title><desc>{escape(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def number(value: float) -> str:
    """Short, for axes: 160000 as 160k, 0.05 as it is."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _drawable(s: Series, chart: Chart) -> Series:
    """The points that are finite, and positive where an axis is logarithmic."""
    kept = [i for i, (x, y) in enumerate(zip(s.x, s.y, strict=True)) if _fits(x, chart.log_x) and _fits(y, chart.log_y)]
    bands = len(s.low) == len(s.x) == len(s.high) and all(_fits(s.low[i], chart.log_y) for i in kept)

    def at(values: Sequence[float]) -> list[float]:
        return [values[i] for i in kept]

    return Series(s.name, at(s.x), at(s.y), at(s.low) if bands else (), at(s.high) if bands else ())


def _fits(value: float | None, log: bool) -> bool:
    return value is not None and math.isfinite(value) and (value > 0 or not log)


def _round_values(low: float, high: float, wanted: int = 5) -> list[float]:
    step = 10.0 ** math.floor(math.log10((high - low) / wanted))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= wanted)
    return [round(n * step, 12) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _frame(x: Axis, y: Axis, chart: Chart, top: int) -> str:
    """Axes, ticks and labels."""
    base = HEIGHT - BOTTOM
    parts = [f'<path class="axis" d="M{LEFT} {top}V{base}H{WIDTH - RIGHT}"/>']
    for value in y.ticks():
        parts.append(f'<path class="grid" d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y(value) + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for value in chart.ticks or x.ticks():
        parts.append(f'<path class="axis" d="M{x(value):.1f} {base}v4"/>')
        parts.append(f'<text x="{x(value):.1f}" y="{base + 17}" text-anchor="middle">{number(value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(chart.x_label)}</text>')
    at = (top + base) / 2
    turned = f'transform="rotate(-90 13 {at})"'
    parts.append(f'<text x="13" y="{at}" text-anchor="middle" {turned}>{escape(chart.y_label)}</text>')
    return "".join(parts)


def _level(name: str, value: float, y: Axis) -> str:
    place = y(value)
    return (
        f'<path class="level" d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}"/>'
        f'<text class="levelname" x="{WIDTH - RIGHT - 2}" y="{place - 5:.1f}" text-anchor="end">'
        f"{escape(name)}</text>"
    )


def _line(s: Series, i: int, x: Axis, y: Axis) -> str:
    """An interval as a band, the line, and marks where there are few points."""
    kind = f"s{i % COLOURS}" + (" again" if i >= COLOURS else "")
    places = [(x(a), y(b)) for a, b in zip(s.x, s.y, strict=True)]
    points = [f"{a:.1f} {b:.1f}" for a, b in places]
    parts = []
    if s.low:
        upper = [f"{x(a):.1f} {y(b):.1f}" for a, b in zip(s.x, s.high, strict=True)]
        lower = [f"{x(a):.1f} {y(b):.1f}" for a, b in zip(s.x, s.low, strict=True)]
        parts.append(f'<path class="band {kind}" d="M{"L".join(upper + lower[::-1])}Z"/>')
    parts.append(f'<path class="line {kind}" d="M{"L".join(points)}"/>')
    if len(points) <= 24:
        parts += [_mark(a, b, i, kind) for a, b in places]
    return "".join(parts)


def _mark(x: float, y: float, i: int, kind: str) -> str:
    """Circle, square, diamond or triangle: lines can be told apart without colour."""
    shape = (
        f"M{x - 3.5:.1f} {y:.1f}a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0",
        f"M{x - 3:.1f} {y - 3:.1f}h6v6h-6z",
        f"M{x:.1f} {y - 4.5:.1f}l4.5 4.5l-4.5 4.5l-4.5 -4.5z",
        f"M{x:.1f} {y - 4:.1f}l4 7h-8z",
    )[i % 4]
    return f'<path class="mark {kind}" d="{shape}"/>'


def _legend(name: str, i: int) -> str:
    kind, y = f"s{i % COLOURS}" + (" again" if i >= COLOURS else ""), 9 + 16 * i
    return (
        f'<path class="line {kind}" d="M{LEFT + 4} {y}h22"/>{_mark(LEFT + 15, y, i, kind)}'
        f'<text x="{LEFT + 33}" y="{y + 4}">{escape(name)}</text>'
    )


def _told(chart: Chart, series: Sequence[Series], levels: dict[str, float]) -> str:
    """The first and last point of every line in words."""
    lines = [f"{s.name}: {number(s.y[0])} at {number(s.x[0])}, {number(s.y[-1])} at {number(s.x[-1])}" for s in series]
    lines += [f"{name}: {number(value)}" for name, value in levels.items()]
    return f"{chart.y_label} over {chart.x_label}. " + "; ".join(lines) + "."
