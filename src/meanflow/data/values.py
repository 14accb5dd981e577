"""Checks on sample values: dtype, shape, NaN and Inf, and the range of images."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .errors import DataError
from .rows import Rows, blocks, dtype_of, sampled_rows

CHANNELS = (1, 3)
LATENT_CHANNELS = (4, 8, 16, 32)  # of the autoencoders in use
RANGE_TOLERANCE = 1e-3  # rounding of float16 and of x / 127.5 - 1, with room to spare
MAPPED_BYTES = 256 * 2**20  # our choice: a memory map above this is looked at in strided rows only


def check_shape(x: Rows, image: bool | None, where: str) -> bool:
    """Whether the samples are images: as `image` says, else with 4 dimensions and 1 or 3 channels."""
    shape = list(x.shape)
    if x.ndim < 2:
        raise DataError(
            f"{where}: x has shape {shape}, wanted [N, ...] with at least one dimension a "
            f"sample; pass x[:, None] for single numbers"
        )
    if 0 in shape:
        raise DataError(f"{where}: x has shape {shape} and so holds no values; pass at least one sample")
    if image and x.ndim != 4:
        raise DataError(
            f"{where}: image=True wants x of shape [N, C, H, W], got {shape}; pass x[:, None] for grey images [N, H, W]"
        )
    return image if image is not None else x.ndim == 4 and shape[1] in CHANNELS


def check_dtype(x: Rows, image: bool, where: str) -> None:
    """DataError unless x is floating point, or uint8 and an image."""
    dtype = dtype_of(x)
    if dtype == torch.uint8 and not image:
        raise DataError(
            f"{where}: uint8 x of shape {list(x.shape)} is no image [N, C, H, W] with 1 or 3 "
            f"channels; pass image=True for other channels, x.permute(0, 3, 1, 2) for channels "
            f"last, x[:, None] for grey [N, H, W], or x.float() for data that are no images"
        )
    if dtype != torch.uint8 and not dtype.is_floating_point:
        raise DataError(
            f"{where}: x has dtype {dtype}, wanted floats or uint8 images; convert it, e.g. "
            f"x.float() scaled as you need, or x.to(torch.uint8) for images in 0 to 255"
        )


@dataclass
class Extent:
    """What a look at all values found."""

    lowest: float = float("inf")
    highest: float = float("-inf")
    bad: int = 0
    first_bad_row: int | None = None

    def add(self, index: Tensor, block: Tensor) -> None:
        """Takes in the rows `block`, whose numbers are `index`."""
        low, high = block.aminmax()
        if not torch.isfinite(high - low):
            finite = block.isfinite()
            self.bad += int((~finite).sum())
            if self.first_bad_row is None and not finite.all():
                self.first_bad_row = int(index[int((~finite.flatten(1).all(1)).nonzero()[0])])
        self.lowest = min(self.lowest, float(low))
        self.highest = max(self.highest, float(high))


def check_floats(x: Rows, image: bool, where: str) -> None:
    """DataError for NaN, Inf and images outside [-1, 1]; a warning for images that look like [0, 1]."""
    index = sampled_rows(x, MAPPED_BYTES) if isinstance(x, np.memmap) else torch.arange(len(x), device="cpu")
    extent = Extent()
    for numbers, block in blocks(x, index):
        extent.add(numbers, block.float())
    if extent.bad:
        total = len(index) * math.prod(x.shape[1:])
        raise DataError(
            f"{where}: {extent.bad} of {total} values of x are NaN or Inf (as float32), first in "
            f"row {extent.first_bad_row}; remove such rows or mend them at their source"
        )
    if image:
        _check_range(extent.lowest, extent.highest, where)


def _check_range(low: float, high: float, where: str) -> None:
    if low < -1 - RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        hint = (
            "this looks like [0, 255]: pass x / 127.5 - 1, or x.to(torch.uint8)"
            if low >= 0 and high > 2
            else "rescale them, or pass image=False if these are no images (e.g. latents)"
        )
        raise DataError(f"{where}: float images must lie in [-1, 1], got [{low:.4g}, {high:.4g}]; {hint}")
    if low >= 0 and high > 0.5:
        warnings.warn(
            f"{where}: float images in [{low:.4g}, {high:.4g}] look like [0, 1], wanted [-1, 1]; use x * 2 - 1",
            stacklevel=4,
        )
