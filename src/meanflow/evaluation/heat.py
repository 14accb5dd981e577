"""Heat maps over (r, t), drawn with Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .one_call import Grid, OneCall

CELL, GAP, LEFT, TOP, BOTTOM = 46, 70, 56, 44, 56  # pixels; our choice
# From the anchor colours of viridis (matplotlib, CC0): dark is small, bright is large.
COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
# The ends of the scale, the same in every picture so that runs can be compared; our choice.
LOWEST, HIGHEST = 0.01, 1.0


def heat_map(found: OneCall) -> Image.Image:
    """Residual and additivity error side by side, on one logarithmic scale of colours from 1 % to 100 %."""
    side = CELL * (len(found.times) - 1)
    panels = (("identity residual", found.residual), ("additivity error", found.additivity))
    image = Image.new("RGB", (LEFT + len(panels) * side + GAP + 20, TOP + side + BOTTOM), "white")
    draw = ImageDraw.Draw(image)
    for k, (title, grid) in enumerate(panels):
        _panel(draw, (LEFT + k * (side + GAP), TOP), title, grid, found.times)
    return image


def _panel(draw: ImageDraw.ImageDraw, at: tuple[int, int], title: str, grid: Grid, times: Sequence[float]) -> None:
    """One grid, t upwards and r to the right; the cell at the top left is the one call from noise to data."""
    left, top = at
    n = len(times) - 1
    draw.text((left, top - 32), f"{title}, % of |u|", fill="black", font=_font(15))
    for i in range(1, n + 1):
        y = top + (n - i) * CELL
        draw.text((left - 8, y + CELL / 2), f"{times[i]:.3g}", fill="black", font=_font(12), anchor="rm")
        for j, value in enumerate(grid[i][:n]):
            if value is not None:
                _cell(draw, left + j * CELL, y, value)
    for j in range(n):
        x = left + j * CELL + CELL / 2
        draw.text((x, top + n * CELL + 6), f"{times[j]:.3g}", fill="black", font=_font(12), anchor="ma")
    draw.text(
        (left + n * CELL / 2, top + n * CELL + 24), "r (end of the jump)", fill="black", font=_font(13), anchor="ma"
    )
    draw.text((left - 40, top - 14), "t", fill="black", font=_font(13))


def _cell(draw: ImageDraw.ImageDraw, x: int, y: int, value: float) -> None:
    colour = shade(value)
    draw.rectangle((x, y, x + CELL - 2, y + CELL - 2), fill=colour)
    # Weights of the eye for red, green and blue (ITU-R BT.601); dark words on bright cells.
    bright = sum(w * c for w, c in zip((0.299, 0.587, 0.114), colour, strict=True)) > 128
    draw.text(
        (x + CELL / 2 - 1, y + CELL / 2 - 1),
        _percent(value),
        fill="black" if bright else "white",
        font=_font(13),
        anchor="mm",
    )


def shade(value: float) -> tuple[int, int, int]:
    """The colour of a relative error: logarithmic from 1 % to 100 %, the ends beyond; infinite is bright."""
    share = math.log(min(max(value, LOWEST), HIGHEST) / LOWEST) / math.log(HIGHEST / LOWEST) if value == value else 1.0
    place = share * (len(COLOURS) - 1)
    k = min(int(place), len(COLOURS) - 2)
    low, high, part = COLOURS[k], COLOURS[k + 1], place - k
    red, green, blue = (round(a + part * (b - a)) for a, b in zip(low, high, strict=True))
    return red, green, blue


def _percent(value: float) -> str:
    percent = 100 * value
    return f"{percent:.1f}" if percent < 9.95 else f"{percent:.0f}" if percent < 9999.5 else ">9999"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
