"""The fast format: a folder with a memory-mapped array of samples, its conditions and a header."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..core.conditions import Cond
from .array_files import arrays
from .attributes import Conditions, from_columns
from .dataset import Dataset
from .errors import DataError
from .files import whole_file, whole_folder
from .fingerprint import leaves
from .streams import Stream
from .tensors import Tensors
from .workers import read_in_workers

HEADER = "meanflow-data.json"
VERSION = 1
PORTION = 256  # our choice: samples read and written at a time


def is_prepared(folder: Path) -> bool:
    """Whether `prepare` wrote a folder."""
    return (folder / HEADER).is_file()


def prepare(
    data: Dataset, out: str | Path, *, workers: int = 0, progress: Callable[[int], object] | None = None
) -> Path:
    """Write a data set to the new folder or file `out`, from which it is read without decoding anything.

    A folder keeps everything. A name that ends in .npy takes samples alone, .npz samples with labels or one tensor of
    conditions; names of classes do not fit into either.

    Images are kept as uint8, other samples as float32, in the order of the data. Written beside, synced, renamed:
    `out` is whole or absent. progress: called with the number of samples just written.
    Raises DataError for a stream and where `out` exists, OSError where the disk is full.
    """
    out = Path(out)
    if isinstance(data, Stream):
        raise DataError(
            f"{data.source}: a stream has no end, so it cannot be written down; collect what you want first"
        )
    if not out.name:
        raise DataError(f"{out} names no folder or file to write; choose a new name")
    if os.path.lexists(out):
        raise DataError(f"{out} exists already; choose another name, or remove it")
    if out.suffix.lower() in (".npy", ".npz"):
        return _prepare_file(data, out, workers, progress)
    with whole_folder(out) as aside:
        _write(data, aside, workers, progress)
    return out


def _prepare_file(data: Dataset, out: Path, workers: int, progress: Callable[[int], object] | None) -> Path:
    """Write one .npy or .npz, whole or not at all."""
    cond, source = data.batch([0])[1], getattr(data, "source", "the data set")
    if cond is not None and (out.suffix.lower() == ".npy" or not isinstance(cond, Tensor)):
        wanted = "one tensor of conditions" if isinstance(cond, dict) else "none"
        raise DataError(
            f"{out}: {source} has conditions, and such a file holds {wanted}; write a folder, or "
            f"{'an .npz, or ' if isinstance(cond, Tensor) else ''}leave them out with cond='none' (--cond none)"
        )
    folder = out.with_name(f".{out.name}.parts.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with whole_file(out) as aside:
            _write(data, folder, workers, progress)
            _join(folder, aside, out.suffix.lower())
            _check_shape(aside, data, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return out


def _check_shape(file: Path, data: Dataset, out: Path) -> None:
    """DataError where the array alone would be taken for another kind of samples, such as images 1 pixel high."""
    try:
        found = arrays(file).shape
    except DataError:
        found = None
    if found != tuple(data.shape):
        source = getattr(data, "source", "the data set")
        raise DataError(
            f"{out}: samples of shape {tuple(data.shape)} as in {source} would not be known again; write a folder"
        )


def _join(folder: Path, file: Path, suffix: str) -> None:
    """The arrays of a prepared folder as one file; an .npz without compression, so that it can be memory-mapped."""
    arrays = sorted(folder.glob("*.npy"))
    if suffix == ".npy":
        os.rename(arrays[0], file)
        return
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for array in arrays:
            archive.write(array, array.name)


def prepared(folder: Path, *, cond: str | None = None) -> Tensors:
    """The data set that `prepare` wrote, on disk and memory-mapped; cond="none" leaves the conditions out.

    Raises DataError naming the file that is missing or damaged.
    """
    header = _read_header(folder)
    try:
        image, file = bool(header["image"]), str(header["x"])
        x = np.load(folder / file, mmap_mode="r", allow_pickle=False)
        tree = _loaded(header["cond"], folder)
        classes = header.get("classes")
        names: Sequence[str] | None = _names(header["class_names"])
        if not isinstance(classes, int | None):
            raise ValueError(f"the number of classes is {classes!r}")
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder}: is damaged ({type(error).__name__}: {error}); prepare it again") from error
    if cond is not None:
        chosen = _selected(tree, names, cond, len(x), folder)
        tree, classes, names = chosen.cond, chosen.classes, chosen.class_names
    return Tensors(x, tree, image=image, classes=classes, class_names=names, source=str(folder))


@dataclass(frozen=True)
class _Read:
    """A portion of a data set in its order, images as uint8; a class, so that it can be sent to other processes."""

    data: Dataset

    def __call__(self, start: int) -> tuple[Tensor, Cond]:
        x, cond = self.data.batch(range(start, min(start + PORTION, len(self.data))))
        return (x.add(1).mul_(127.5).round_().to(torch.uint8) if is_bytes(self.data) else x), cond


def is_bytes(data: Dataset) -> bool:
    """Whether the samples are uint8 images / 127.5 - 1."""
    return bool(getattr(data, "is_bytes", False))


def _write(data: Dataset, folder: Path, workers: int, progress: Callable[[int], object] | None) -> None:
    starts = range(0, len(data), PORTION)
    read = _Read(data)
    portions: Iterable[tuple[Tensor, Cond]] = read_in_workers(read, starts, workers) if workers else map(read, starts)
    names: dict[str, str] = {}
    with ExitStack() as opened:
        files: list[BinaryIO] = []
        for x, cond in portions:
            found = [("images" if is_bytes(data) else "x", x), *leaves(cond)]
            if not files:
                names = {path: _file_name(path, cond, number) for number, (path, _) in enumerate(found)}
                files = [opened.enter_context(open(folder / names[path], "wb")) for path, _ in found]
                for file, (_, rows) in zip(files, found, strict=True):
                    _begin(file, rows, len(data))
            for file, (_, rows) in zip(files, found, strict=True):
                file.write(np.ascontiguousarray(rows.numpy()).data)
            if progress is not None:
                progress(len(x))
    _write_header(data, folder, next(iter(names.values())), _tree(data.batch([0])[1], names))


def _begin(file: BinaryIO, rows: Tensor, length: int) -> None:
    """Write the header of a .npy file for `length` rows like these."""
    array = rows.numpy()
    descr, shape = np.lib.format.dtype_to_descr(array.dtype), (length, *array.shape[1:])
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})


def _write_header(data: Dataset, folder: Path, x: str, cond: Any) -> None:
    header = {
        "format": "meanflow-data",
        "version": VERSION,
        "x": x,
        "cond": cond,
        "length": len(data),
        "shape": list(data.shape),
        "image": is_bytes(data) or bool(getattr(data, "image", False)),
        "classes": data.classes,
        "class_names": None if data.class_names is None else list(data.class_names),
        "made_from": data.description(),
    }
    (folder / HEADER).write_text(json.dumps(header, indent=1), encoding="utf-8")


def _file_name(path: str, cond: Cond, number: int) -> str:
    if not path.startswith("cond"):
        return f"{path}.npy"
    if isinstance(cond, Tensor):
        return "labels.npy" if cond.ndim == 1 else "cond.npy"
    return f"cond-{number}.npy"  # keys may hold anything, file names may not


def _tree(cond: Cond, names: dict[str, str], path: str = "cond") -> Any:
    if isinstance(cond, dict):
        return {key: _tree(value, names, f"{path}[{key!r}]") for key, value in cond.items()}
    return None if cond is None else names[path]


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        if header["format"] != "meanflow-data" or header["version"] != VERSION:
            raise ValueError(f"version {header['version']} of format {header['format']}, wanted {VERSION}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: is no header that this version reads ({error}); prepare the data again") from error
    return dict(header)


def _names(found: Any) -> list[str] | None:
    if found is not None and not (isinstance(found, list) and all(isinstance(name, str) for name in found)):
        raise ValueError(f"the names of classes are {found!r}")
    return found


def _loaded(tree: Any, folder: Path) -> Any:
    if isinstance(tree, dict):
        return {key: _loaded(value, folder) for key, value in tree.items()}
    return None if tree is None else np.load(folder / str(tree), allow_pickle=False)


def _selected(tree: Any, names: Any, cond: str, length: int, folder: Path) -> Conditions:
    """Those of the stored conditions that `cond` names."""
    columns = tree if isinstance(tree, dict) else {} if tree is None else {"label": tree}
    return from_columns(columns, length, str(folder), cond, {"label": names} if names else None)
