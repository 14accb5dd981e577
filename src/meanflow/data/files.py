"""Small helpers for files and archives."""

import os
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

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


def write_text(path: Path, text: str) -> None:
    """Replace a file by new text, whole or not at all."""
    aside = path.with_name(f".{path.name}.tmp")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
