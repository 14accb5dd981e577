"""A folder of images."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from .attributes import Conditions, by_file, from_columns, from_folders, parse_table
from .encoded_images import Check, EncodedImages, ImageOptions, Indices, Store
from .errors import DataError
from .files import open_file
from .listing import Listing, list_images

TABLE_BYTES = 2**30  # our choice: a table of attributes beyond this is no table of attributes


class ImageFolder(EncodedImages):
    """The images of a folder: one sub-folder a class, or all directly in it; they stay on disk.

    Sub-folders train and test (or val, held_out) are splits. A metadata.csv or .jsonl (or attributes.csv) with the
    column file_name gives conditions instead of the sub-folders: `cond` names its columns, as in from_columns.
    Other options: those of ImageOptions. Raises DataError, which names the file, for what cannot be used.
    """

    def __init__(
        self,
        root: str | Path,
        size: int | tuple[int, int] | None = None,
        *,
        skip_broken: bool = False,
        mode: str | None = None,
        threads: int | None = None,
        check: Check = "auto",
        split: str = "train",
        cond: str | None = None,
    ) -> None:
        self.root = Path(root)
        options = ImageOptions(size, mode, skip_broken, threads, check)
        store = FolderStore(self.root)
        listing = list_images(store.names, store.where, split)
        _check_empty(store, listing)
        super().__init__(store, listing.positions, listed_conditions(store, listing, cond), options)


class FolderStore:
    """The files below a folder, by name."""

    kind = "image_folder"

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(
                f"{root}: "
                f"{'is a file, not a folder' if root.exists() else 'there is no such folder'}; pass a folder of images"
            )
        self.where, self._root = str(root), root
        self.names = sorted(_visible_files(root))

    def name(self, position: int) -> str:
        return self.names[position]

    def open(self, position: int) -> BinaryIO:
        return open_file(os.path.join(self.where, self.names[position]))

    def sizes(self, positions: Sequence[int]) -> Iterable[tuple[str, int]]:
        return ((self.names[p], os.stat(os.path.join(self.where, self.names[p])).st_size) for p in positions)

    def blocks(self, positions: Indices) -> None:
        return None


def listed_conditions(store: Store, listing: Listing, wanted: str | None) -> Conditions:
    """Conditions of listed images: the columns of their table, else their folders, else none."""
    if listing.table is not None:
        where = f"{store.where}/{store.name(listing.table)}"
        columns = by_file(parse_table(_text(store, listing.table, where), where, where), listing.names, where)
        return from_columns(columns, len(listing.names), where, wanted)
    if wanted not in (None, "none", "label"):
        raise DataError(
            f"{store.where}: there is no column {wanted!r} for a condition; put a metadata.csv with the columns "
            f"file_name and {wanted} beside the images"
        )
    if wanted == "none" or listing.labels is None or listing.class_names is None:
        return Conditions()
    return from_folders(listing.labels, listing.class_names)


def _text(store: Store, position: int, where: str) -> str:
    try:
        with store.open(position) as file:
            content = file.read(TABLE_BYTES + 1)
        if len(content) > TABLE_BYTES:
            raise ValueError("it is larger than 1 GiB, so keep the columns that you need only")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is no UTF-8 text ({error}); save it again as UTF-8") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: cannot be read ({error}); restore it, or leave it away") from error


def _check_empty(store: "FolderStore", listing: Listing) -> None:
    """DataError for a folder among those of the classes that holds no image: every one counts as a class."""
    if listing.labels is None:
        return
    name = listing.names[0]
    root = Path(store.where, store.name(listing.positions[0]).removesuffix(name))
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != ".")
    empty = sorted(set(folders) - {name.split("/", 1)[0] for name in listing.names})
    if empty:
        raise DataError(
            f"{root}: the class folder {empty[0]!r} holds no images ({len(empty)} such of {len(folders)}); fill it or "
            f"remove it, since every folder counts as a class"
        )


def _visible_files(root: Path) -> Iterator[str]:
    visited: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        visited.add(os.path.realpath(folder))
        # a link to a folder above itself would be walked for ever
        folders[:] = [
            name for name in folders if name[0] != "." and os.path.realpath(os.path.join(folder, name)) not in visited
        ]
        below = "" if folder == str(root) else f"{os.path.relpath(folder, root)}/"
        yield from (f"{below}{name}" for name in files if name[0] != ".")
