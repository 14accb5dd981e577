"""CIFAR-10 and CIFAR-100 as their author gives them: pickles in a folder or in a .tar.gz (cs.toronto.edu/~kriz)."""

import re
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from .attributes import from_columns
from .errors import DataError
from .listing import check_split, no_split
from .plain_pickle import load_plain
from .tensors import Tensors

TRAIN = re.compile(r"data_batch_\d+|train")
HELD_OUT = re.compile(r"test_batch|test")
META = ("batches.meta", "meta")
LABELS = {"labels": "label", "fine_labels": "fine_label", "coarse_labels": "coarse_label"}
NAMES = {"label": "label_names", "fine_label": "fine_label_names", "coarse_label": "coarse_label_names"}
FILE_BYTES = 1 << 30  # our choice: the largest file of the two has 155 MB


def is_cifar(folder: Path) -> bool:
    """Whether a folder holds the files of CIFAR-10 or CIFAR-100."""
    return any((folder / name).is_file() for name in META) and any(
        TRAIN.fullmatch(path.name) and path.is_file() for path in folder.iterdir()
    )


def cifar(path: Path, *, split: str = "train", cond: str | None = None) -> Tensors:
    """Images of CIFAR from the folder or the .tar.gz; "held_out" are the test images.

    cond: "none", or for CIFAR-100 "fine_label" (the default), "coarse_label" or both with a comma between. The pickles
    are read without running anything in them. Raises DataError naming the file.
    """
    check_split(str(path), split)
    files = _from_folder(path) if path.is_dir() else _from_tar(path)
    wanted = {"train": (TRAIN,), "held_out": (HELD_OUT,), "all": (TRAIN, HELD_OUT)}[split]
    names = [name for pattern in wanted for name in sorted(files) if pattern.fullmatch(name)]
    if not names:
        raise no_split(str(path), split)
    batches = [_batch(files[name](), f"{path}/{name}") for name in names]
    pixels = np.concatenate([images for images, _ in batches])
    keys = [key for key in batches[0][1] if all(key in columns for _, columns in batches)]
    columns = {key: np.concatenate([np.asarray(part[key]) for _, part in batches]) for key in keys}
    conditions = from_columns(columns, len(pixels), str(path), cond, _names(files, path))
    return Tensors(
        pixels,
        conditions.cond,
        classes=conditions.classes,
        class_names=conditions.class_names,
        source=str(path),
    )


def _batch(content: bytes, where: str) -> tuple[np.ndarray[Any, Any], dict[str, list[int]]]:
    """Pixels [N, 3, 32, 32] and the columns of labels of one file."""
    stored = _texts(load_plain(content, where))
    pixels = stored.get("data")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
        came = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise DataError(f"{where}: its entry 'data' is {came}, wanted uint8 [N, 3072]; fetch it again")
    columns = {column: stored[key] for key, column in LABELS.items() if key in stored}
    for key, column in columns.items():
        if not isinstance(column, list) or len(column) != len(pixels) or not all(type(n) is int for n in column):
            raise DataError(f"{where}: has {len(pixels)} images, but no integer {key} for each; fetch it again")
    return pixels.reshape(-1, 3, 32, 32), columns


def _names(files: dict[str, Callable[[], bytes]], path: Path) -> dict[str, list[str]]:
    name = next((name for name in META if name in files), None)
    if name is None:
        return {}
    stored = _texts(load_plain(files[name](), f"{path}/{name}"))
    found = {column: stored[key] for column, key in NAMES.items() if isinstance(stored.get(key), list)}
    return {column: [_text(name) for name in names] for column, names in found.items()}


def _texts(stored: object) -> dict[str, Any]:
    return {_text(key): value for key, value in stored.items()} if isinstance(stored, dict) else {}


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _from_folder(folder: Path) -> dict[str, Callable[[], bytes]]:
    return {path.name: path.read_bytes for path in folder.iterdir() if _known(path.name) and path.is_file()}


def _from_tar(path: Path) -> dict[str, Callable[[], bytes]]:
    try:
        with tarfile.open(path, "r:*") as archive:
            found = dict(_contents(archive))
    # tarfile lets through whatever a damaged archive leads it to, with those of zlib, bz2 and lzma
    except Exception as error:
        raise DataError(f"{path}: cannot be read as an archive ({error}); it may be cut off: fetch it again") from error
    if not any(TRAIN.fullmatch(name) or HELD_OUT.fullmatch(name) for name in found):
        raise DataError(
            f"{path}: is a compressed archive without the files of CIFAR; its members cannot be read in any order: "
            f"uncompress it to a .tar (images gain nothing by it), or unpack it into a folder"
        )
    return {name: (lambda content=content: content) for name, content in found.items()}  # type: ignore[misc]


def _contents(archive: tarfile.TarFile) -> Iterable[tuple[str, bytes]]:
    for member in archive:
        name = PurePosixPath(member.name).name
        if member.isfile() and _known(name) and member.size <= FILE_BYTES:
            file = archive.extractfile(member)
            if file is not None:
                yield name, file.read()


def _known(name: str) -> bool:
    return name in META or bool(TRAIN.fullmatch(name) or HELD_OUT.fullmatch(name))
