"""The images to be encoded, as squares of one size."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from .crop import adm_crop
from .images import Bytes, read_image
from .listing import list_images


class Squares:
    """The images of a folder, one sub-folder a class or all directly in it, read upright and as RGB.

    Raises DataError for a folder that holds none.
    """

    def __init__(self, root: Path) -> None:
        listing = list_images(root)
        self.root, self.names, self.labels, self.class_names = root, listing.names, listing.labels, listing.class_names

    def __len__(self) -> int:
        return len(self.names)

    def title(self, place: int) -> str:
        """What messages call an image."""
        return str(self.root / self.names[place])

    def file_bytes(self, place: int) -> int:
        """Size of the file of an image."""
        return os.path.getsize(self.root / self.names[place])

    def read(self, place: int, size: int) -> Bytes:
        """The centre square uint8 [3, size, size] of an image, cut as ADM cuts it; DataError naming a broken one."""
        pixels = read_image(self.root / self.names[place], "RGB", None)
        square = adm_crop(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))), size)
        return np.asarray(square).transpose(2, 0, 1)

    def places(self, skipped: Iterable[str]) -> list[int]:
        """All images but those of these names."""
        left_out = set(skipped)
        return [place for place, name in enumerate(self.names) if name not in left_out]
