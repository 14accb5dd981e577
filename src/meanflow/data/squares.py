"""The images to be encoded, as squares of one size."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from .crop import adm_crop
from .encoded_images import Store
from .image_folder import FolderStore
from .images import Bytes, read_image
from .listing import list_images
from .zip_images import ZipStore


class Squares:
    """The images of a folder or zip archive, one sub-folder a class or all directly in it, read upright and as RGB.

    Raises DataError for a folder that holds none.
    """

    def __init__(self, root: Path) -> None:
        archive = root.suffix.lower() == ".zip"
        store: ZipStore | FolderStore = ZipStore(root) if archive else FolderStore(root)
        listing = list_images(store.names, store.where, "all", archive=archive)
        self._store: Store = store
        self._positions = listing.positions
        self.names, self.labels, self.class_names = listing.names, listing.labels, listing.class_names

    def __len__(self) -> int:
        return len(self.names)

    def title(self, place: int) -> str:
        """What messages call an image."""
        return f"{self._store.where}/{self._store.name(self._positions[place])}"

    def file_bytes(self, place: int) -> int:
        """Size of the file of an image."""
        return next(iter(self._store.sizes([self._positions[place]])))[1]

    def read(self, place: int, size: int) -> Bytes:
        """The centre square uint8 [3, size, size] of an image, cut as ADM cuts it; DataError naming a broken one."""
        pixels = read_image(partial(self._store.open, self._positions[place]), self.title(place), "RGB", None)
        square = adm_crop(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))), size)
        return np.asarray(square).transpose(2, 0, 1)

    def places(self, skipped: Iterable[str]) -> list[int]:
        """All images but those of these names."""
        left_out = set(skipped)
        return [place for place, name in enumerate(self.names) if name not in left_out]
