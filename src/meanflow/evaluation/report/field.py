"""Sections for points of a plane: samples over data, and the mean velocity u(z, r, t) as arrows."""

from __future__ import annotations

from html import escape

import torch
from torch import Tensor

from ...core.conditions import map_cond
from ...core.derivative import call, evaluating
from ...data import Dataset
from .charts import svg
from .page import Section, figure, paragraph
from .subject import LeftOut, Subject, conditions, draw, noise_of

POINTS = 800  # all of these numbers: our choice
SIDE = 300
ARROWS = 15
TIMES = ((0.0, 1.0), (0.5, 1.0), (0.0, 0.5), (1.0, 1.0), (0.5, 0.5), (0.1, 0.1))
"""Pairs (r, t): the one call, its two halves, and instantaneous velocities."""


def points(subject: Subject) -> Section:
    """One-call samples of a plane over training data."""
    _need_plane(subject)
    x = draw(subject, noise_of(subject, POINTS), conditions(subject, POINTS), 1)
    data = _data_points(subject)
    reach = _reach(x if data is None else torch.cat([x, data]))
    panels = [("Samples, one call each", x, "s0")] + ([("Training data", data, "s1")] if data is not None else [])
    drawn = "".join(figure(_scatter(name, p, reach, kind), f"{name}: {len(p)} points.") for name, p, kind in panels)
    return Section("points", "Samples", f'<div class="pair">{drawn}</div>', {"points": POINTS, "reach": reach})


def field(subject: Subject) -> Section:
    """Arrows of -u(z, r, t) on a grid over the points that the path passes at time t, for six pairs of times."""
    _need_plane(subject)
    data, noise = _data_points(subject), noise_of(subject, POINTS)
    if data is None:
        raise LeftOut(subject.why_no_data)
    panels, sizes = [], {}
    for r, t in TIMES:
        # z_t = (1 - t) x + t e
        z = (1 - t) * data + t * noise[: len(data)]
        grid, u = mean_velocity(subject, _reach(z), r, t)
        name = f"u(z, r = {r:g}, t = {t:g})"
        sizes[f"{r:g},{t:g}"] = float(u.norm(dim=1).mean())
        panels.append(figure(_arrows(name, z, grid, u), name))
    note = (
        "Arrows point along −u, the way that sampling goes, with a length in proportion to |u| in each panel; dots "
        "are data mixed with noise at time t. Panels with r < t show the mean velocity that a call uses, those with "
        "r = t the velocity of the flow."
    )
    body = paragraph(note, "note") + f'<div class="pair">{"".join(panels)}</div>'
    return Section("field", "The field u(z, r, t)", body, {"mean_size": sizes})


@torch.no_grad()
def mean_velocity(subject: Subject, reach: float, r: float, t: float) -> tuple[Tensor, Tensor]:
    """Grid points z [ARROWS^2, 2] of the square that reaches this far, and u(z, r, t) at them."""
    device = next(subject.net.parameters()).device
    line = torch.linspace(-reach, reach, ARROWS + 2)[1:-1]
    z = torch.cartesian_prod(line, line).to(device)
    cond = map_cond(lambda c: c.to(device), conditions(subject, len(z)))
    one = torch.ones(len(z), device=device)
    with evaluating(subject.net):
        u = call(subject.net, z, t * one, r * one, cond)
    return z.cpu(), u.float().cpu()


def _data_points(subject: Subject) -> Tensor | None:
    data: Dataset | None = subject.train
    if data is None:
        return None
    rows = torch.linspace(0, len(data) - 1, min(POINTS, len(data))).long()
    return data.batch(rows)[0].float()


def _need_plane(subject: Subject) -> None:
    if subject.shape != (2,):
        raise LeftOut(f"samples of shape {list(subject.shape)} are no points of a plane")


def _reach(x: Tensor) -> float:
    """Half the side of a square that holds nearly all points."""
    return max(float(torch.quantile(x.abs(), 0.995)) * 1.1, 1e-6)


def _scatter(name: str, x: Tensor, reach: float, kind: str) -> str:
    parts = [_box(), _dots(x, reach, kind, 1.7)]
    return svg(name, f"{len(x)} points in a square of half side {reach:.3g}", parts, SIDE, SIDE)


def _arrows(name: str, z: Tensor, grid: Tensor, u: Tensor) -> str:
    reach = float(grid.max()) * (ARROWS + 1) / (ARROWS - 1)
    # The longest arrow is nearly as long as the distance of two grid points.
    scale = 1.7 * reach / (ARROWS + 1) / max(float(u.norm(dim=1).max()), 1e-12)
    ends = grid - scale * u
    paths = "".join(_arrow(_at(a, reach), _at(b, reach)) for a, b in zip(grid, ends, strict=True))
    told = f"arrows on a grid of {ARROWS} by {ARROWS} points; mean |u| {float(u.norm(dim=1).mean()):.3g}"
    return svg(name, told, [_box(), _dots(z, reach, "s1", 1.3), f'<path class="arrow" d="{paths}"/>'], SIDE, SIDE)


def _arrow(a: tuple[float, float], b: tuple[float, float]) -> str:
    """A line with a head at b."""
    x, y = b[0] - a[0], b[1] - a[1]
    back = [(b[0] - 0.35 * x + s * 0.2 * y, b[1] - 0.35 * y - s * 0.2 * x) for s in (1, -1)]
    return (
        f"M{a[0]:.1f} {a[1]:.1f}L{b[0]:.1f} {b[1]:.1f}"
        f"M{back[0][0]:.1f} {back[0][1]:.1f}L{b[0]:.1f} {b[1]:.1f}L{back[1][0]:.1f} {back[1][1]:.1f}"
    )


def _at(point: Tensor, reach: float) -> tuple[float, float]:
    x, y = point.tolist()
    return SIDE / 2 * (1 + x / reach), SIDE / 2 * (1 - y / reach)


def _dots(x: Tensor, reach: float, kind: str, radius: float) -> str:
    """All points as one path of small circles; those outside the square are left out."""
    inside = [_at(p, reach) for p in x if float(p.abs().max()) < reach]
    r = radius
    path = "".join(f"M{a - r:.1f} {b:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0" for a, b in inside)
    return f'<path class="fill dot {escape(kind)}" d="{path}"/>'


def _box() -> str:
    return f'<path class="axis" d="M.5 .5H{SIDE - 0.5}V{SIDE - 0.5}H.5Z"/>'
