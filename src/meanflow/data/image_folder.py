"""A folder of images, read from disk batch by batch."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..core.conditions import Cond
from . import fingerprint
from .errors import DataError
from .images import Bytes, Header, read_header, read_image
from .listing import list_images
from .pool import Pool

FULL_CHECK_FILES = 20_000  # our choice: beyond this, decoding every file keeps the user waiting
MODES = ("L", "RGB")


class ImageFolder:
    """The images of a folder: one sub-folder a class, or all directly in it; they stay on disk.

    size: None wants images of one size; a number or (height, width) crops the centre and resizes (antialiased
        bicubic) to it.
    mode: "L" or "RGB" converts all images; None keeps grey or colour but refuses a mixture. Palette and CMYK
        count as colour, transparency is laid on white, 16-bit grey is scaled to 8 bits (65,535 is white),
        EXIF rotation is applied, and of an animation the first frame is taken.
    skip_broken: leave unreadable images out, warn, and list them in `skipped`, instead of raising.
    workers: threads that decode, by default one a core and 16 at most.
    check: "full" decodes every file once before anything else, "headers" reads the headers only, "auto" is
        "full" for at most 20,000 files.
    Raises DataError, which names the file, for what cannot be used.
    """

    def __init__(
        self,
        root: str | Path,
        size: int | tuple[int, int] | None = None,
        *,
        skip_broken: bool = False,
        mode: str | None = None,
        workers: int | None = None,
        check: Literal["auto", "full", "headers"] = "auto",
    ) -> None:
        if mode not in (None, *MODES):
            raise DataError(f"mode must be 'L', 'RGB' or None, got {mode!r}")
        if check not in ("auto", "full", "headers"):
            raise DataError(f"check must be 'auto', 'full' or 'headers', got {check!r}")
        self.root = Path(root)
        self._pool = Pool(workers)
        self._size = _size(size)
        listing = list_images(self.root)
        decode = check == "full" or (check == "auto" and len(listing.names) <= FULL_CHECK_FILES)
        headers = self._scan(listing.names, decode, skip_broken)
        self.skipped = tuple(name for name in listing.names if name not in headers)
        self._mode = mode or _common_mode(headers, self.root)
        height, width = self._size or _common_size(headers, self.root)
        self.shape = (MODES.index(self._mode) * 2 + 1, height, width)
        self.class_names = listing.class_names
        self.classes = len(listing.class_names) if listing.class_names else None
        self._names = list(headers)
        self._labels = _labels(listing.names, listing.labels, headers)
        self._fingerprint = fingerprint.of_files((name, headers[name].file_bytes) for name in headers)

    def __len__(self) -> int:
        return len(self._names)

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Cond]:
        """Images float32 [B, C, H, W] in [-1, 1], and labels int64 [B] where there are classes."""
        index = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        pixels = list(self._pool.map(self._read, [self._names[i] for i in index.tolist()]))
        x = torch.from_numpy(np.stack(pixels) if pixels else np.empty((0, *self.shape), np.uint8))
        return x.float().div_(127.5).sub_(1), None if self._labels is None else self._labels[index]

    def description(self) -> dict[str, Any]:
        """Kind, source, length, shape, classes, number of skipped files and fingerprint, ready for JSON."""
        return {
            "kind": "image_folder",
            "source": str(self.root),
            "length": len(self),
            "shape": list(self.shape),
            "classes": self.classes,
            "skipped": len(self.skipped),
            "fingerprint": self._fingerprint,
        }

    def _read(self, name: str) -> Bytes:
        pixels = read_image(self.root / name, self._mode, self._size)
        if pixels.shape != self.shape:
            raise DataError(
                f"{self.root / name}: now has the shape {list(pixels.shape)}, but had "
                f"{list(self.shape)} when the folder was opened; open it again, or leave the "
                f"files alone during a run"
            )
        return pixels

    def _scan(self, names: list[str], decode: bool, skip_broken: bool) -> dict[str, Header]:
        def header_or_error(name: str) -> Header | DataError:
            try:
                return read_header(self.root / name, decode)
            except DataError as error:
                return error

        found = dict(zip(names, self._pool.map(header_or_error, names), strict=True))
        errors = [header for header in found.values() if isinstance(header, DataError)]
        if errors and (not skip_broken or len(errors) == len(names)):
            raise DataError(f"{len(errors)} of {len(names)} images are broken, the first: {errors[0]}") from errors[0]
        if errors:
            warnings.warn(
                f"{len(errors)} of {len(names)} images are broken and left out, the first: {errors[0]}",
                stacklevel=3,
            )
        return {name: header for name, header in found.items() if isinstance(header, Header)}


def _size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    pair = (size, size) if isinstance(size, int) else size
    if pair is not None and (len(pair) != 2 or min(pair) < 1):
        raise DataError(f"size must be a positive number or (height, width), got {size!r}; e.g. size=64")
    return None if pair is None else (int(pair[0]), int(pair[1]))


def _common_size(headers: dict[str, Header], root: Path) -> tuple[int, int]:
    first, size = next((name, header.size) for name, header in headers.items())
    for name, header in headers.items():
        if header.size != size:
            shorter = min(min(header.size) for header in headers.values())
            raise DataError(
                f"{root}: images differ in size (height x width): {first} is "
                f"{size[0]}x{size[1]}, {name} is {header.size[0]}x{header.size[1]}; pass size=, "
                f"e.g. size={shorter} (--size {shorter}), to crop and resize them all"
            )
    return size


def _common_mode(headers: dict[str, Header], root: Path) -> str:
    grey = next((name for name, header in headers.items() if header.grey), None)
    colour = next((name for name, header in headers.items() if not header.grey), None)
    if grey and colour:
        raise DataError(
            f"{root}: grey and colour images are mixed: {grey} is grey, {colour} is colour; pass "
            f'mode="RGB" or mode="L" (--mode) to convert them all'
        )
    return "L" if grey else "RGB"


def _labels(names: list[str], labels: list[int] | None, kept: dict[str, Header]) -> Tensor | None:
    if labels is None:
        return None
    chosen = [label for name, label in zip(names, labels, strict=True) if name in kept]
    return torch.tensor(chosen, dtype=torch.int64, device="cpu")
