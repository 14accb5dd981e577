"""Section on the field's own laws: what one call loses against many, and where in (r, t) the identity is broken."""

from __future__ import annotations

from html import escape

from ...core.conditions import map_cond
from ...core.sampling import EulerField
from ..one_call import Grid, OneCall, one_call
from .page import Section, paragraph, scrolling
from .samples import calls
from .subject import LeftOut, Subject, conditions, noise_of

ROWS = 32  # of noise; this and the next two are our choice: about 230 network calls of 32 rows
MANY = 32
GRID = 8
EDGES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Relative errors between which the shade of a cell changes, the same on every page so that runs can be compared."""


def diagnosis(subject: Subject) -> Section:
    """Distances of few-call samples to many-call ones, and two tables over (r, t)."""
    if isinstance(subject.net, EulerField):
        raise LeftOut("flow matching learns no mean velocity, so the MeanFlow identity is no law of this field")
    device = next(subject.net.parameters()).device
    cond = map_cond(lambda c: c.to(device), conditions(subject, ROWS))
    noise = noise_of(subject, ROWS, first=20_000).to(device)
    try:
        found = one_call(subject.net, noise, cond, many=MANY, grid=GRID)
    except (RuntimeError, ValueError) as error:  # a network without forward-mode derivative, for one
        raise LeftOut(f"the derivative of the network cannot be taken: {str(error).splitlines()[0]}") from error
    distances = "; ".join(f"{calls(d.calls)}: {d.mean:.1%}" for d in found.distances)
    body = paragraph(f"Mean distance to the sample of {calls(MANY)} from the same noise, |x − y| / |y|: {distances}.")
    body += paragraph(
        f"Cells are relative errors in % of |u|, over {ROWS} noises, of jumps from t (down) to r (across); the cell at "
        "the lower left is the one call from noise to data. Left, how far u is from what the MeanFlow identity (eq. 6) "
        "asks for; right, one jump against two through the middle.",
        "note",
    )
    body += f'<div class="pair">{_map(found, found.residual, "Identity residual, %")}'
    body += f"{_map(found, found.additivity, 'Additivity error, %')}</div>"
    return Section("one-call", "What one call loses", body, found.to_dict())


def shade(value: float) -> int:
    """Which of the six shades a relative error has."""
    return sum(value >= edge for edge in EDGES)


def _map(found: OneCall, grid: Grid, title: str) -> str:
    """A table with t downwards and r to the right."""
    size = len(found.times) - 1
    head = "".join(f'<th scope="col">{r:.3g}</th>' for r in found.times[:size])
    lines = "".join(
        f'<tr><th scope="row">{found.times[i]:.3g}</th>{"".join(_cell(v) for v in grid[i][:size])}</tr>'
        for i in range(1, size + 1)
    )
    table = (
        f'<table class="heat"><caption>{escape(title)}</caption><thead><tr><th>t \\ r</th>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table>"
    )
    return scrolling(table, title)


def _cell(value: float | None) -> str:
    if value is None:
        return "<td></td>"
    percent = 100 * value
    text = f"{percent:.1f}" if percent < 9.95 else f"{percent:.0f}"
    return f'<td class="h{shade(value)}">{text}</td>'
