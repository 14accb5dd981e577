"""Small helpers for files and archives."""

import hashlib
import os
import shutil
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .errors import DataError

MEMBER_BYTES = 256 * 2**20  # our choice: an encoded image of more bytes than this is none


def open_file(path: str | Path, buffering: int = -1) -> BinaryIO:
    """A file for reading; OSError for a pipe or a device, whose opening or reading might never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb", buffering)
    os.close(descriptor)
    raise OSError(f"{path} is no file with contents, but a pipe, device or the like")


def read_at(path: str | Path, offset: int, length: int) -> bytes:
    """`length` bytes from `offset` on; OSError or ValueError where they are not there.

    Opened for every read: that costs some microseconds, and leaves nothing to be shared by threads and processes,
    no limit on the number of open files, and an error at once where a file has vanished.
    """
    with open_file(path, buffering=0) as file:
        file.seek(offset)
        content = file.read(length)
        while len(content) < length and (more := file.read(length - len(content))):
            content += more
    if len(content) != length:
        raise ValueError(f"{path} ends before its place; the file is cut off, or was changed since it was opened")
    return content


def read_npz(path: str | Path, only: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name, plain numbers only. Raises DataError naming a file that is none or is damaged.

    only: the names to read, as far as they are there; the others may be large.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: np.asarray(stored[name]) for name in stored.files if only is None or name in only}
    except Exception as error:  # numpy, zipfile and zlib raise what they like; a .npy has no files
        raise DataError(f"{path} cannot be read as an .npz of plain numbers: {error}") from error


def sha256_of(path: Path) -> str:
    """sha256 of a file's contents."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_unique(names: Sequence[str], where: str) -> None:
    """DataError for a name that an archive holds more than once: which one is meant?"""
    if len(set(names)) != len(names):
        name, count = Counter(names).most_common(1)[0]
        raise DataError(f"{where}: holds {name} {count} times; pack it again with one of them")


def sync(path: Path) -> None:
    """Make sure that a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_file(path: Path, *, shared: bool = False, synced: bool = True) -> Iterator[Path]:
    """A name to write to that becomes `path` when all went well, and leaves nothing when not.

    shared: several processes may write this file at the same moment, so each writes under a name of its own.
    synced: wait until it is on the disk; what can be drawn again in a moment, by the thousand, does without.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path, shared)
    try:
        yield aside
        if synced:
            sync(aside)
        os.replace(aside, path)
        if synced:
            sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, *, replace: bool = False, shared: bool = False) -> Iterator[Path]:
    """A folder to fill that becomes `path` when all went well, synced, and leaves nothing when not.

    replace: what is there already goes. Otherwise raises ValueError where something is, other than an empty folder.
    shared: as of `whole_file`.
    """
    if not path.name:
        raise ValueError(f"{path} names no folder to write; choose a new name")
    if not replace and os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is there already and not empty; choose another name, or remove it")
    path = path.resolve() if path.is_symlink() else path
    aside = _aside(path, shared)
    shutil.rmtree(aside, ignore_errors=True)  # left by a killed process
    aside.mkdir(parents=True)
    try:
        yield aside
        for part in aside.rglob("*"):
            sync(part)
        sync(aside)
        if replace:
            shutil.rmtree(path, ignore_errors=True)
        os.rename(aside, path)  # takes the place of an empty folder, and of nothing else
        sync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _aside(path: Path, shared: bool) -> Path:
    # the suffix stays last, because some writers go by it
    return path.with_name(f".{path.stem}{f'.{os.getpid()}' if shared else ''}.tmp{path.suffix}")


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Replace a file by new text, whole or not at all."""
    with whole_file(path, shared=shared) as aside:
        aside.write_text(text, encoding="utf-8")
