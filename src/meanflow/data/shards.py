"""Images in tar archives: WebDataset shards (img.jpg beside img.cls, img.json or img.txt), or packed image folders."""

import glob
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from .attributes import Conditions, from_columns
from .encoded_images import EncodedImages, ImageOptions, Indices
from .errors import DataError
from .files import MEMBER_BYTES, check_unique, read_at
from .image_folder import listed_conditions
from .images import SUFFIXES
from .listing import HELD_OUT_NAMES, TRAIN_NAMES, check_split, list_images, no_split

BESIDE = (".cls", ".json", ".txt")
BESIDE_BYTES = 2**20  # our choice: more than this beside one image is no condition
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def shard_paths(source: str) -> list[Path]:
    """The files that a path, a pattern (*, ?) or a range ({000..146}) names, or the .tar files of a folder, sorted."""
    texts = [source]
    if RANGE.search(source):
        spans = [[f"{n:0{len(low)}d}" for n in range(int(low), int(high) + 1)] for low, high in RANGE.findall(source)]
        template = RANGE.sub("\0", source).split("\0")
        texts = ["".join(a + b for a, b in zip(template, (*chosen, ""), strict=True)) for chosen in product(*spans)]
    paths = [
        Path(p).expanduser() for text in texts for p in (sorted(glob.glob(text)) if glob.has_magic(text) else [text])
    ]
    if len(paths) == 1 and paths[0].is_dir():
        return sorted(path for path in paths[0].iterdir() if path.suffix == ".tar" and path.name[0] != ".")
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        lost = missing[0] if missing else source
        raise DataError(f"{lost}: there is no such file; fetch it, or correct {source}")
    return paths


def shards(
    paths: Sequence[Path],
    where: str,
    options: ImageOptions | None = None,
    *,
    split: str = "train",
    cond: str | None = None,
) -> EncodedImages:
    """The images of tar archives, read in any order without unpacking them.

    Files of one name up to its first dot are one sample: its image, and conditions in .cls (an integer), .json (an
    object of columns) or .txt (a class name). Without such files the archive is laid out like an image folder.
    split: among shards called train... and val... or test..., else among the folders inside. cond: the columns, as in
    from_columns. Names and offsets are kept in memory. Raises DataError naming archive and member.
    """
    check_split(where, split)
    named = _of_split(paths, split)
    store = TarStore(named or list(paths), where)
    samples = None if cond == "none" else store.samples()
    if samples is None:
        inner = "all" if named and split == "held_out" else split
        listing = list_images(store.inner_names, where, inner, archive=True)
        return EncodedImages(store, listing.positions, listed_conditions(store, listing, cond), options)
    if split == "held_out" and not named:
        raise no_split(where, split)
    positions, columns = samples
    conditions = from_columns(columns, len(positions), where, cond) if columns else Conditions()
    return EncodedImages(store, positions, conditions, options)


@dataclass
class _Index:
    """What lies in the archives, filled shard by shard."""

    names: list[str] = field(default_factory=list)
    shard: list[int] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    beside: dict[tuple[int, str], dict[str, bytes]] = field(default_factory=dict)


class TarStore:
    """The members of tar archives by their offsets; nothing stays open."""

    kind = "tar"

    def __init__(self, paths: Sequence[Path], where: str) -> None:
        self.where, self._paths = where, list(paths)
        index = _Index()
        for number, path in enumerate(paths):
            _add(index, number, path)
        self.inner_names, self._beside = index.names, index.beside
        self._shard, self._offset, self._size = (np.array(c, np.int64) for c in (index.shard, index.offset, index.size))

    def name(self, position: int) -> str:
        inner = self.inner_names[position]
        return inner if len(self._paths) == 1 else f"{self._paths[self._shard[position]].name}/{inner}"

    def open(self, position: int) -> BinaryIO:
        size = int(self._size[position])
        if size > MEMBER_BYTES:
            raise ValueError(f"has {size:,} bytes, more than an image can have")
        return io.BytesIO(read_at(self._paths[self._shard[position]], int(self._offset[position]), size))

    def sizes(self, positions: Sequence[int]) -> Iterable[tuple[str, int]]:
        return ((self.name(p), int(self._size[p])) for p in positions)

    def blocks(self, positions: Indices) -> None:
        return None

    def samples(self) -> tuple[list[int], dict[str, list[object]]] | None:
        """Positions of images and columns of what lies beside them; None where nothing does."""
        beside, self._beside = self._beside, {}
        if not beside:
            return None
        positions, rows = [], []
        keys: dict[tuple[int, str], str] = {}
        for position, name in enumerate(self.inner_names):
            if PurePosixPath(name).suffix.lower() not in SUFFIXES:
                continue
            key = int(self._shard[position]), _key(name)
            if key in keys:
                raise DataError(
                    f"{self.where}: {self.name(position)} and {keys[key]} are two images of one sample; give each "
                    f"image a name of its own up to the first dot"
                )
            keys[key] = name
            positions.append(position)
            rows.append(_row(beside.get(key, {}), f"{self.where}/{self.name(position)}"))
        columns = list(dict.fromkeys(column for row in rows for column in row))
        return positions, {column: [row.get(column) for row in rows] for column in columns}


def _add(index: _Index, number: int, path: Path) -> None:
    """Add the members of one archive to the index."""
    first, end = len(index.names), path.stat().st_size
    try:
        with tarfile.open(path, "r:", errors="surrogateescape") as archive, open(path, "rb") as content:
            for member in _members(archive):
                index.names.append(member.name)
                index.shard.append(number)
                index.offset.append(member.offset_data)
                index.size.append(member.size)
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError(f"{member.name} goes beyond the end of the file")
                suffix = PurePosixPath(member.name).suffix.lower()
                if suffix in BESIDE and member.size <= BESIDE_BYTES:
                    content.seek(member.offset_data)
                    index.beside.setdefault((number, _key(member.name)), {})[suffix] = content.read(member.size)
    # tarfile lets through whatever a damaged header leads it to
    except Exception as error:
        raise DataError(
            f"{path}: cannot be read as a tar archive ({error}); it may be cut off: fetch or pack it again. A "
            f"compressed one cannot be read in any order: uncompress it, images gain nothing by it"
        ) from error
    check_unique(index.names[first:], str(path))


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The plain files of an archive, forgotten by it one by one: it would keep a kilobyte for each."""
    offset = -1
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]
        if member.offset <= offset:
            raise tarfile.ReadError("its members go in a circle")
        offset = member.offset
        if member.isreg() and not member.issparse():
            yield member


def _key(name: str) -> str:
    """What the files of a sample share: the name up to the first dot after the folders."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _row(beside: dict[str, bytes], where: str) -> dict[str, object]:
    """The columns that lie beside one image."""
    row: dict[str, object] = {}
    try:
        if ".cls" in beside:
            row["cls"] = int(beside[".cls"])
        if ".txt" in beside:
            row["txt"] = beside[".txt"].decode().strip()
        if ".json" in beside:
            row.update(json.loads(beside[".json"]))
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f"{where}: what lies beside it is no condition ({error}); wanted an integer in .cls, an object in .json, "
            f"UTF-8 text in .txt; correct it, or leave all of them out with cond='none' (--cond none)"
        ) from error
    return row


def _of_split(paths: Sequence[Path], split: str) -> list[Path]:
    """The shards that their names put into `split`; none where the names do not tell."""

    def called(path: Path, words: Sequence[str]) -> bool:
        return bool({*re.split(r"[^a-z]+", path.name.lower())} & {*words})

    train = [path for path in paths if called(path, TRAIN_NAMES)]
    held_out = [path for path in paths if called(path, HELD_OUT_NAMES)]
    if not train or not held_out:
        return []
    return {"train": train, "held_out": held_out, "all": [*train, *held_out]}[split]
