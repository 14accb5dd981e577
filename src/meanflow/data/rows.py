"""Rows of a tensor or of a memory-mapped array, read without holding the whole array in memory."""

import math
import os
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .errors import DataError

Rows: TypeAlias = Tensor | np.ndarray[Any, Any]
BLOCK_BYTES = 16 * 2**20  # our choice: large enough to be fast, small enough to go unnoticed


def as_rows(x: object, name: str) -> Rows:
    """A tensor for everything in memory, a memory map as it is; DataError for anything else."""
    if isinstance(x, Tensor):
        return x.detach()
    if not isinstance(x, np.ndarray):
        raise DataError(
            f"{name} must be a torch tensor or a numpy array, got {type(x).__name__}; "
            f"convert it, e.g. with numpy.asarray"
        )
    if x.dtype.hasobject or x.dtype.kind not in "biufc":
        raise DataError(f"{name} must hold numbers, got numpy dtype {x.dtype}; convert it to uint8 or float32")
    return x if isinstance(x, np.memmap) else to_tensor(x, name)


def to_tensor(x: np.ndarray[Any, Any], name: str = "array") -> Tensor:
    """The array as a CPU tensor, shared with it where memory order, byte order and writability allow."""
    native = np.require(np.asarray(x), x.dtype.newbyteorder("="), ["C", "W", "A"])
    try:
        return torch.from_numpy(native)
    except TypeError as error:
        raise DataError(f"{name} has numpy dtype {x.dtype}, which torch lacks; convert it to float32") from error


def dtype_of(x: Rows) -> torch.dtype:
    """The torch dtype that `take` returns."""
    return x.dtype if isinstance(x, Tensor) else to_tensor(np.empty(0, x.dtype)).dtype


def take(x: Rows, index: Tensor) -> Tensor:
    """Rows `index` (int64 [B]) as a tensor [B, ...] of the stored dtype."""
    if isinstance(x, Tensor):
        return x[index.to(x.device)]
    _check_whole(x)
    return to_tensor(x[index.cpu().numpy()])


def _check_whole(x: np.ndarray[Any, Any]) -> None:
    """DataError for a mapped file that was cut off: reading beyond its end would kill the process without a word."""
    path = getattr(x, "filename", None)
    if isinstance(x, np.memmap) and path is not None and os.path.exists(path):
        size, wanted = os.path.getsize(path), x.offset + x.nbytes
        if size < wanted:
            raise DataError(f"{path}: was cut off while in use: {size:,} bytes, wanted {wanted:,}; restore it")


def row_bytes(x: Rows) -> int:
    """Bytes of one row as it is stored."""
    size = x.element_size() if isinstance(x, Tensor) else x.itemsize
    return max(1, size * math.prod(x.shape[1:]))


def sampled_rows(x: Rows, limit: int) -> Tensor:
    """All row numbers, or above `limit` bytes evenly strided ones of a quarter of it, with the last."""
    count = len(x)
    if count * row_bytes(x) <= limit or count <= 2:
        return torch.arange(count, device="cpu")
    kept = min(count, max(2, limit // 4 // row_bytes(x)))
    return torch.arange(kept, device="cpu") * (count - 1) // (kept - 1)


def blocks(x: Rows, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows `index` in turn, as pairs of row numbers and rows of about BLOCK_BYTES."""
    step = max(1, BLOCK_BYTES // row_bytes(x))
    for first in range(0, len(index), step):
        part = index[first : first + step]
        yield part, take(x, part)
