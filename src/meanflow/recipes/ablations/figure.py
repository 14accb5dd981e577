"""The figure: one panel for each part of the table, ours and the paper's on axes of their own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...evaluation import save_picture

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
    size = max(3.6 * columns, 7), 1 + 2.9 * rows
    canvas = FigureCanvasAgg(Figure(figsize=size, dpi=110, layout="constrained"))
    panels = list(canvas.figure.subplots(rows, columns, squeeze=False).flat)
    for table, axes in zip(tables, panels, strict=False):
        _panel(axes, table)
    for axes in panels[len(tables) :]:
        axes.remove()
    _legend(canvas.figure, s)
    canvas.draw()
    return save_picture(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"), path)


def _legend(drawing: Any, s: dict[str, Any]) -> None:
    from matplotlib.lines import Line2D

    drawing.suptitle(f"Table 1 of the paper, and the same on {s['subject']}: lower is better", fontsize=11)
    ours = f"left axis: {s['subject']}, Frechet distance (not FID); line: mean, dots: single seeds"
    marks = [
        Line2D([], [], color=OURS, marker="o", label=ours),
        Line2D([], [], color=PAPER, marker="s", linestyle="--", label="right axis: the paper, FID on ImageNet 256x256"),
    ]
    drawing.legend(handles=marks, loc="outside lower center", ncols=1, fontsize=9, frameon=False)


def _panel(axes: Any, table: dict[str, Any]) -> None:
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
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

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
            side.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            side.yaxis.set_minor_formatter(NullFormatter())
        else:
            side.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", alpha=0.25)
