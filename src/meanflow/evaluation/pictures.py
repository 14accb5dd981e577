"""Samples as pictures: grids of images, points of two-dimensional data."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.files import whole_file


def as_bytes(x: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, rounded to the nearest value, out-of-range values clipped."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_uint8(x: Tensor) -> Tensor:
    """The same on the CPU, computed in float32 whatever the images are."""
    return as_bytes(x.float()).cpu()


def drawable(shape: tuple[int, ...]) -> bool:
    """Whether samples of this shape can be drawn: images with 1 or 3 channels, or points of a plane."""
    return tuple(shape) == (2,) or (len(shape) == 3 and shape[0] in (1, 3))


def picture(x: Tensor, columns: int | None = None) -> Image.Image:
    """A grid of images [B, 1 or 3, H, W] in [-1, 1], or a scatter of points [B, 2].

    columns: images per row; None makes the grid about square. Small images are enlarged by whole factors.
    """
    if x.ndim == 2 and x.shape[1] == 2:
        return _scatter(x)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"only images [B, 1 or 3, H, W] and points [B, 2] can be drawn, got {list(x.shape)}")
    b, c, h, w = x.shape
    columns = columns or math.ceil(math.sqrt(b))
    rows = math.ceil(b / columns)
    grid = torch.full((rows, columns, h + 2, w + 2, c), 255, dtype=torch.uint8)
    flat = grid.view(rows * columns, h + 2, w + 2, c)
    flat[:b, 1:-1, 1:-1] = to_uint8(x).permute(0, 2, 3, 1)
    array = grid.permute(0, 2, 1, 3, 4).reshape(rows * (h + 2), columns * (w + 2), c).numpy()
    return _enlarged(_image(array), max(1, 48 // max(h, w)))


def single(x: Tensor) -> Image.Image:
    """One image [1 or 3, H, W] in [-1, 1] at its own size."""
    return _image(to_uint8(x).permute(1, 2, 0).numpy())


def save_picture(image: Image.Image, path: Path) -> Path:
    """Write a PNG, whole or not at all."""
    with whole_file(path, shared=True, synced=False) as aside:
        image.save(aside, format="PNG")
    return path


def _image(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def _enlarged(image: Image.Image, factor: int) -> Image.Image:
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _scatter(x: Tensor, side: int = 400) -> Image.Image:
    """Density of points in the square that holds 99 % of them, dark where there are many."""
    reach = max(float(torch.quantile(x.abs().float(), 0.99)) * 1.25, 1e-6)
    edges = np.linspace(-reach, reach, side // 4 + 1)
    counts, _, _ = np.histogram2d(-x[:, 1].cpu().numpy(), x[:, 0].cpu().numpy(), bins=(edges, edges))
    shade = 255 - np.minimum(255, counts / max(counts.max(), 1) * 400).astype(np.uint8)
    return _enlarged(Image.fromarray(shade), 4)
