"""Images for a page: sheets of tiles with see-through gaps, as data URIs."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

from ..pictures import to_uint8

GAP = 1  # pixels of a tile's own scale between tiles; our choice
TILE = 48  # least side of a tile on the page; smaller images are enlarged by whole factors
LARGEST = 128  # greatest side; larger images are reduced, so that a page of many stays small
EXACT = 64  # images up to this side are stored without loss


@dataclass(frozen=True)
class Picture:
    """An encoded image with its size and the words for those who do not see it."""

    uri: str
    width: int
    height: int
    alt: str


def sheet(x: Tensor, columns: int, alt: str) -> Picture:
    """Images [B, 1 or 3, H, W] in [-1, 1], row by row in `columns` columns."""
    b, c, h, w = x.shape
    rows = -(-b // columns)
    grid = torch.zeros((rows, columns, h + GAP, w + GAP, c + 1), dtype=torch.uint8)
    flat = grid.view(rows * columns, h + GAP, w + GAP, c + 1)
    flat[:b, :h, :w, :c] = to_uint8(x).permute(0, 2, 3, 1)
    flat[:b, :h, :w, c] = 255
    whole = grid.permute(0, 2, 1, 3, 4).reshape(rows * (h + GAP), columns * (w + GAP), c + 1)
    return encoded(_fitted(Image.fromarray(whole[:-GAP, :-GAP].numpy()), max(h, w)), alt, exact=max(h, w) <= EXACT)


def encoded(image: Image.Image, alt: str, *, exact: bool = True) -> Picture:
    """PNG, or WebP where small loss is allowed, as a data URI."""
    file, kind = BytesIO(), "png" if exact else "webp"
    image.save(file, format=kind.upper(), **({"optimize": True} if exact else {"quality": 88}))
    text = base64.b64encode(file.getvalue()).decode("ascii")
    return Picture(f"data:image/{kind};base64,{text}", image.width, image.height, alt)


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """Enlarged by a whole factor, or reduced, so that tiles have a side that can be looked at."""
    if side > LARGEST:
        factor = LARGEST / side
        return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)
    factor = max(1, TILE // side)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
