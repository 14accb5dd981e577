"""Images that stay where they are, encoded, and are read batch by batch: the base of folders, archives and tables."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ..core.conditions import Cond
from ..core.conditions import take as take_rows
from . import fingerprint
from .attributes import Conditions
from .errors import DataError
from .images import Bytes, Header, read_header, read_image
from .order import Blocks, block_order, order
from .pool import Pool

FULL_CHECK_FILES = 20_000  # our choice: beyond this, decoding every file keeps the user waiting
MODES = ("L", "RGB")
Check = Literal["auto", "full", "headers"]
Indices = np.ndarray[Any, np.dtype[np.int64]]


class Store(Protocol):
    """Where encoded images lie; reading is safe in threads and after a fork."""

    kind: str
    where: str  # a path, for messages

    def name(self, position: int) -> str:
        """What the image at a position is called in messages, below `where`."""

    def open(self, position: int) -> BinaryIO:
        """Its encoded bytes; raises OSError or ValueError saying what is wrong with them."""

    def sizes(self, positions: Sequence[int]) -> Iterable[tuple[str, int]]:
        """Pairs (name, bytes) from which the fingerprint follows."""

    def blocks(self, positions: Indices) -> Blocks | None:
        """How the images at these positions lie in blocks that can be read as a whole only; None if they do not."""


@dataclass(frozen=True)
class ImageOptions:
    """How encoded images are read.

    size: None wants images of one size; a number or (height, width) crops the centre and resizes (antialiased
        bicubic) to it.
    mode: "L" or "RGB" converts all images; None keeps grey or colour but refuses a mixture. Palette and CMYK
        count as colour, transparency is laid on white, 16-bit grey is scaled to 8 bits (65,535 is white),
        EXIF rotation is applied, and of an animation the first frame is taken.
    skip_broken: leave unreadable images out, warn, and list them in `skipped`, instead of raising.
    threads: how many of them decode, by default one a core and 16 at most.
    check: "full" decodes every image once before anything else, "headers" reads the headers only, "auto" is
        "full" for at most 20,000 images.
    Raises DataError for impossible ones.
    """

    size: int | tuple[int, int] | None = None
    mode: str | None = None
    skip_broken: bool = False
    threads: int | None = None
    check: Check = "auto"

    def __post_init__(self) -> None:
        if self.mode not in (None, *MODES):
            raise DataError(f"mode must be 'L', 'RGB' or None, got {self.mode!r}")
        if self.check not in ("auto", "full", "headers"):
            raise DataError(f"check must be 'auto', 'full' or 'headers', got {self.check!r}")
        if self.pair is not None and (len(self.pair) != 2 or min(self.pair) < 1):
            raise DataError(f"size must be a positive number or (height, width), got {self.size!r}; e.g. size=64")

    @property
    def pair(self) -> tuple[int, int] | None:
        """The size as (height, width)."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def decodes(self, count: int) -> bool:
        """Whether `count` images are all decoded once at the start."""
        return self.check == "full" or (self.check == "auto" and count <= FULL_CHECK_FILES)


class EncodedImages:
    """The images at some positions of a store, with their conditions.

    Raises DataError, which names the image, for what cannot be used.
    """

    is_bytes = True  # batches are uint8 pixels / 127.5 - 1

    def __init__(
        self, store: Store, positions: Sequence[int], conditions: Conditions, options: ImageOptions | None = None
    ) -> None:
        options = options or ImageOptions()
        self.source, self._store, self._pool = store.where, store, Pool(options.threads)
        self._size = options.pair
        self._positions = np.asarray(positions, np.int64)
        found = self._scan(options.decodes(len(positions)), options.skip_broken)
        self._mode = options.mode or found.common_mode(self)
        height, width = self._size or found.common_size(self)
        self.shape: tuple[int, ...] = (MODES.index(self._mode) * 2 + 1, height, width)
        self.skipped = tuple(self._name(row) for row in np.flatnonzero(found.broken).tolist())
        kept = np.flatnonzero(~found.broken)
        self._positions = self._positions[kept]
        self._conditions = conditions.rows(torch.from_numpy(kept)) if self.skipped else conditions
        self.classes, self.class_names = conditions.classes, conditions.class_names
        self.conditions, self.values = self._conditions.cond, self._conditions.values
        counted = None if conditions.in_names else self._conditions.cond
        self._fingerprint = fingerprint.of_files(store.sizes(self._positions.tolist()), counted)
        self._blocks = store.blocks(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Cond]:
        """Images float32 [B, C, H, W] in [-1, 1], and the conditions where there are any."""
        index = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        pixels = np.empty((len(index), *self.shape), np.uint8)
        for number, image in enumerate(self._pool.map(self._read, index.tolist())):
            pixels[number] = image
        return torch.from_numpy(pixels).float().div_(127.5).sub_(1), take_rows(self._conditions.cond, index)

    def order(self, *, seed: int, start: int, count: int) -> Tensor:
        """The order of samples, as data.order; where reading one means reading its neighbours, in windows of blocks."""
        if self._blocks is None:
            return order(len(self), seed=seed, start=start, count=count)
        return block_order(self._blocks, seed=seed, start=start, count=count)

    def description(self) -> dict[str, Any]:
        """Kind, source, length, shape, classes, number of skipped images and fingerprint, ready for JSON."""
        values = {"values": {k: list(v) for k, v in self._conditions.values.items()}} if self._conditions.values else {}
        return {
            "kind": self._store.kind,
            "source": self.source,
            "length": len(self),
            "shape": list(self.shape),
            "classes": self.classes,
            "skipped": len(self.skipped),
            "fingerprint": self._fingerprint,
            **values,
        }

    def _name(self, row: int) -> str:
        return self._store.name(int(self._positions[row]))

    def _title(self, row: int) -> str:
        return f"{self._store.where}/{self._name(row)}"

    def _read(self, row: int) -> Bytes:
        opened = partial(self._store.open, int(self._positions[row]))
        pixels = read_image(opened, self._title(row), self._mode, self._size)
        if pixels.shape != self.shape:
            raise DataError(
                f"{self._title(row)}: now has the shape {list(pixels.shape)}, but had {list(self.shape)} when the data "
                f"were opened; open them again, or leave the files alone during a run"
            )
        return pixels

    def _scan(self, decode: bool, skip_broken: bool) -> "_Found":
        def header_or_error(row: int) -> Header | DataError:
            try:
                return read_header(partial(self._store.open, int(self._positions[row])), self._title(row), decode)
            except DataError as error:
                return error

        count = len(self._positions)
        if not count:
            raise DataError(f"{self.source}: none of its images can be opened; are they links to nowhere?")
        found = _Found(count, self._pool.map(header_or_error, range(count)))
        if found.first_error is not None:
            said = f"{int(found.broken.sum())} of {count} images are broken"
            if not skip_broken or found.broken.all():
                raise DataError(f"{said}, the first: {found.first_error}") from found.first_error
            warnings.warn(f"{said} and left out, the first: {found.first_error}", stacklevel=4)
        return found


class _Found:
    """What the headers say, in arrays: there may be millions of them."""

    def __init__(self, count: int, headers: Iterator[Header | DataError]) -> None:
        self.size = np.zeros((count, 2), np.int32)
        self.grey, self.broken = np.zeros(count, bool), np.zeros(count, bool)
        self.first_error: DataError | None = None
        for row, header in enumerate(headers):
            if isinstance(header, DataError):
                self.broken[row] = True
                self.first_error = self.first_error or header
            else:
                self.size[row], self.grey[row] = header.size, header.grey

    def common_size(self, data: EncodedImages) -> tuple[int, int]:
        """The size of all images; DataError naming two that differ."""
        rows = np.flatnonzero(~self.broken)
        first, sizes = int(rows[0]), self.size[rows]
        differ = rows[(sizes != sizes[0]).any(1)]
        if len(differ):
            (height, width), (other_height, other_width) = self.size[first], self.size[differ[0]]
            raise DataError(
                f"{data.source}: images differ in size (height x width): {data._name(first)} is {height}x{width}, "
                f"{data._name(int(differ[0]))} is {other_height}x{other_width}; pass size=, e.g. size={sizes.min()} "
                f"(--size {sizes.min()}), to crop and resize them all"
            )
        return int(sizes[0, 0]), int(sizes[0, 1])

    def common_mode(self, data: EncodedImages) -> str:
        """ "L" or "RGB" for all images; DataError naming two that differ."""
        grey, colour = (np.flatnonzero(~self.broken & chosen) for chosen in (self.grey, ~self.grey))
        if len(grey) and len(colour):
            one, other = data._name(int(grey[0])), data._name(int(colour[0]))
            raise DataError(
                f"{data.source}: grey and colour images are mixed: {one} is grey, {other} is colour; pass "
                f'mode="RGB" or mode="L" (--mode) to convert them all'
            )
        return "L" if len(grey) else "RGB"
