"""The idx files of MNIST and its kin, as published: gzip, big-endian header, bytes."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from ...data import DataError, Tensors

FILES = tuple(f"{part}-{kind}.gz" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))


def read_idx_folder(folder: Path, part: str) -> Tensors:
    """Images uint8 [N, 1, H, W] and labels [N] of one part, "train" or "t10k"; raises DataError naming the file."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder}: {', '.join(missing)} missing; ablations want the four files as published")
    images = _read(folder / f"{part}-images-idx3-ubyte.gz", 3)
    labels = _read(folder / f"{part}-labels-idx1-ubyte.gz", 1)
    return Tensors(images[:, None], labels.astype(np.int64), source=str(folder / part))


def _read(path: Path, dimensions: int) -> np.ndarray:
    """The bytes of one file as an array; source of the format: http://yann.lecun.com/exdb/mnist/."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked ({error}); download it again") from error
    start = 4 + 4 * dimensions
    # Two zero bytes, 8 for unsigned bytes, the number of dimensions, then each size in 4 bytes.
    if raw[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"{path}: begins with {raw[:4].hex()}, wanted 000008{dimensions:02x}; this is another file")
    shape = tuple(int(n) for n in np.frombuffer(raw[4:start], dtype=">u4"))
    if len(raw) - start != np.prod(shape):
        raise DataError(f"{path}: holds {len(raw) - start} bytes for the shape {shape}; download it again")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape).copy()
