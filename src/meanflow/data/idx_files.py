"""The idx files of MNIST and its kin, plain or gzipped (format: yann.lecun.com/exdb/mnist)."""

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from .attributes import from_columns
from .errors import DataError
from .listing import check_split, no_split
from .tensors import Tensors

Array = np.ndarray[Any, Any]
DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
NAME = re.compile(r".*idx\d+[-.]?ubyte(\.gz)?$|.*\.idx\d*(\.gz)?$", re.IGNORECASE)
DEFLATE_RATIO = 1032  # the most that deflate can gain: 258 bytes out of 2 bits (zlib's technical details)


def is_idx(path: Path) -> bool:
    """Whether a file is called like an idx file."""
    return NAME.fullmatch(path.name) is not None


def idx_folder(folder: Path) -> list[Path]:
    """The files of images in a folder of idx files, empty if it is none."""
    return sorted(path for path in folder.iterdir() if is_idx(path) and "images" in path.name and path.is_file())


def idx(path: Path, *, split: str = "train", cond: str | None = None) -> Tensors:
    """Images of one idx file with the file of labels beside it, or of a folder with the files of both splits.

    split: "train" takes the files called train, "held_out" those called t10k or test, "all" both. A plain file stays
    on disk, a gzipped one is unpacked into memory. Raises DataError naming the file.
    """
    check_split(str(path), split)
    chosen = _chosen(path, split) if path.is_dir() else [path]
    if path.is_file() and split == "held_out":
        raise no_split(str(path), split)
    images = [read_idx(file) for file in chosen]
    x = images[0] if len(images) == 1 else np.concatenate(images)
    labels = [_labels(file, len(part)) for file, part in zip(chosen, images, strict=True)]
    found = [part for part in labels if part is not None]
    columns = {"label": np.concatenate(found)} if len(found) == len(images) else {}
    conditions = from_columns(columns, len(x), str(path), cond)
    pixels = x[:, None] if x.ndim == 3 else x
    return Tensors(pixels, conditions.cond, classes=conditions.classes, source=str(path))


def read_idx(path: Path) -> Array:
    """The array of an idx file; DataError saying what is wrong with it."""
    try:
        return _read(path)
    except DataError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as an idx file ({error}); fetch it again") from error


def _read(path: Path) -> Array:
    packed = path.suffix.lower() == ".gz"
    with gzip.open(path) if packed else open(path, "rb") as file:
        dtype, shape = _header(file.read(4), file, path)
        start, wanted = 4 + 4 * len(shape), dtype.itemsize * math.prod(shape)
        on_disk = path.stat().st_size
        if wanted > (on_disk * DEFLATE_RATIO if packed else on_disk - start):
            raise DataError(f"{path}: is cut off: its header declares {wanted:,} bytes of data; fetch it again")
        if not packed:
            return np.memmap(path, dtype, "r", offset=start, shape=shape)
        content = file.read(wanted + 1)
    if len(content) != wanted:
        said = "is cut off" if len(content) < wanted else "goes on after its data"
        raise DataError(f"{path}: {said}: its header declares {wanted:,} bytes of data; fetch it again")
    return np.frombuffer(content, dtype).reshape(shape)


def _header(magic: bytes, file: Any, path: Path) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape: two zero bytes, the type, the number of dimensions, and each of them as big-endian int32."""
    if len(magic) != 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES or magic[3] == 0:
        raise DataError(
            f"{path}: begins with the bytes {magic.hex() or '(none)'}, an idx file with 0000, a type (08 for bytes) "
            f"and the number of dimensions (03 for images, 01 for labels); fetch it again, or is it of another kind?"
        )
    sizes = file.read(4 * magic[3])
    if len(sizes) != 4 * magic[3]:
        raise DataError(f"{path}: is cut off within its header; fetch it again")
    return np.dtype(DTYPES[magic[2]]), tuple(np.frombuffer(sizes, ">i4").astype(np.int64).clip(0).tolist())


def _chosen(folder: Path, split: str) -> list[Path]:
    images = idx_folder(folder)
    train = [path for path in images if "train" in path.name]
    held_out = [path for path in images if "t10k" in path.name or "test" in path.name]
    chosen = {"train": train, "held_out": held_out, "all": [*train, *held_out]}[split]
    if len(train) > 1 or len(held_out) > 1:
        names = ", ".join(path.name for path in (train if len(train) > 1 else held_out))
        raise DataError(f"{folder}: which of {names} is meant? Name the file itself")
    if not chosen:
        names = ", ".join(path.name for path in images)
        raise DataError(f"{folder}: has no files of images for split {split!r}, only {names}; name the file itself")
    return chosen


def _labels(images: Path, count: int) -> Array | None:
    """The labels in the file beside, packed or not; None if there is no such file."""
    name = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    path = next((p for p in (images.with_name(name), images.with_name(f"{name}.gz")) if p.is_file()), None)
    if path is None or path == images:
        return None
    labels = read_idx(path)
    if labels.shape != (count,):
        raise DataError(
            f"{path}: holds labels of shape {list(labels.shape)}, but {images.name} holds {count} images; one of the "
            f"two belongs to other data"
        )
    return labels
