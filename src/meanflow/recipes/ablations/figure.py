"""The figure: one panel for each part of the table, ours and the paper's on axes of their own."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

OURS, PAPER = "#1f5fa8", "#c7601c"


def require_matplotlib() -> None:
    """Raise ValueError where figures cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the figure needs matplotlib: pip install 'meanflow[plot]', or leave it out with --no-figure")


def figure(s: dict[str, Any], path: Path) -> Path:
    """Draw a summary as a PNG; raises ValueError without matplotlib (the extra `plot`)."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tables = s["tables"]
    columns = min(len(tables), 4)
    rows = -(-len(tables) // columns)
    canvas = FigureCanvasAgg(Figure(figsize=(3.6 * columns, 0.7 + 2.9 * rows), layout="constrained"))
    panels = canvas.figure.subplots(rows, columns, squeeze=False).flat
    for table, axes in zip(tables, panels, strict=False):
        _panel(axes, table, s["floor"])
    for axes in list(panels)[len(tables) :]:
        axes.remove()
    seeds = len(s["seeds"])
    canvas.figure.suptitle(
        f"Left axis: {s['subject']}, Frechet distance (not FID), {seeds} seed{'s' if seeds > 1 else ''}. "
        "Right axis: the paper, FID on ImageNet. Lower is better",
        fontsize=10,
    )
    aside = path.with_name(f".{path.name}.tmp")
    canvas.figure.savefig(aside, format="png", dpi=110)
    os.replace(aside, path)
    return path


def _panel(axes: Any, table: dict[str, Any], floor: float) -> None:
    """One table: its values from left to right, every seed as a dot, the means as a line, the paper dashed."""
    values = table["values"]
    other = axes.twinx()
    other.plot([v["paper"] for v in values], "s--", color=PAPER, markersize=5, linewidth=1, zorder=1)
    drawn = [(i, v["frechet"]) for i, v in enumerate(values) if v["frechet"]["values"]]
    for i, found in drawn:
        axes.plot([i] * len(found["values"]), found["values"], ".", color=OURS, alpha=0.45, markersize=6)
    axes.plot([i for i, _ in drawn], [found["mean"] for _, found in drawn], "o-", color=OURS, markersize=6)
    axes.set_zorder(other.get_zorder() + 1)
    axes.patch.set_visible(False)
    means = [found["mean"] for _, found in drawn]
    # A panel with a failure in it shows nothing else on a linear axis.
    if means and max(means) > 3 * min(means):
        axes.set_yscale("log")
    if max(v["paper"] for v in values) > 3 * min(v["paper"] for v in values):
        other.set_yscale("log")
    _label(axes, other, table)


def _label(axes: Any, other: Any, table: dict[str, Any]) -> None:
    from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter

    labels = [
        value["label"].replace("lognorm", "logn.").replace("(", "\n(", 1).lstrip("\n") for value in table["values"]
    ]
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    for tick, value in zip(axes.get_xticklabels(), table["values"], strict=True):
        tick.set_fontweight("bold" if value["label"] == table["chosen"] else "normal")
    axes.set_xlim(-0.4, len(labels) - 0.6)
    axes.set_title(f"{table['letter']}: {table['title']}", fontsize=9)
    for side, colour in ((axes, OURS), (other, PAPER)):
        side.tick_params(axis="y", colors=colour, labelsize=8)
        side.yaxis.set_major_formatter(ScalarFormatter())
        if side.get_yscale() == "log":
            side.yaxis.set_minor_formatter(NullFormatter())
        else:
            side.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", alpha=0.25)
