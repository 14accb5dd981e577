"""Images in a zip archive, read without unpacking it."""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .encoded_images import EncodedImages, ImageOptions, Indices
from .errors import DataError
from .files import MEMBER_BYTES, check_unique, read_at
from .image_folder import listed_conditions
from .listing import list_images

LOCAL_HEADER = 30  # bytes; PKWARE APPNOTE 4.3.7, the lengths of name and extra field are its last 4
ENCRYPTED = 0x1  # APPNOTE 4.4.4, bit 0 of the general purpose flags
DEFLATE_RATIO = 1032  # the most that deflate can gain: 258 bytes out of 2 bits (zlib's technical details)


def zip_images(
    path: Path, options: ImageOptions | None = None, *, split: str = "train", cond: str | None = None
) -> EncodedImages:
    """The images of a zip archive, laid out like an image folder; folders around everything are looked through.

    Only names and offsets are kept in memory. Raises DataError naming archive and member.
    """
    store = ZipStore(path)
    listing = list_images(store.names, store.where, split, archive=True)
    return EncodedImages(store, listing.positions, listed_conditions(store, listing, cond), options)


class ZipStore:
    """The members of a zip archive; nothing stays open, so threads and processes need not share anything."""

    kind = "zip"

    def __init__(self, path: Path) -> None:
        self.where, self._path = str(path), path
        members = _members(path)
        self.names = [member.filename for member in members]
        check_unique(self.names, self.where)
        self._columns = np.array(
            [(m.header_offset, m.compress_size, m.file_size, m.CRC, m.compress_type) for m in members], np.int64
        ).reshape(-1, 5)

    def name(self, position: int) -> str:
        return self.names[position]

    def open(self, position: int) -> BinaryIO:
        offset, packed, size, crc, method = self._columns[position].tolist()
        if size > MEMBER_BYTES or size > packed * DEFLATE_RATIO + 64:
            raise ValueError(f"declares {size:,} bytes out of {packed:,}, more than an image can be")
        header = read_at(self._path, offset, LOCAL_HEADER)
        if header[:4] != b"PK\x03\x04":
            raise ValueError("there is no member at its place; the archive is damaged")
        start = offset + LOCAL_HEADER + sum(struct.unpack("<HH", header[26:]))
        content = _unpacked(read_at(self._path, start, packed), size, method)
        if len(content) != size or zlib.crc32(content) != crc:
            raise ValueError("its bytes do not have the checksum that the archive declares")
        return io.BytesIO(content)

    def sizes(self, positions: Sequence[int]) -> Iterable[tuple[str, int]]:
        return ((self.names[p], int(self._columns[p, 2])) for p in positions)

    def blocks(self, positions: Indices) -> None:
        return None


def _unpacked(content: bytes, size: int, method: int) -> bytes:
    if method == zipfile.ZIP_STORED:
        return content
    if method != zipfile.ZIP_DEFLATED:
        raise ValueError(f"is compressed by method {method}, wanted stored or deflated members")
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)


def _members(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
    # zipfile lets through whatever a damaged directory leads it to, up to struct.error and UnicodeDecodeError
    except Exception as error:
        raise DataError(
            f"{path}: cannot be read as a zip archive ({error}); it may be cut off: fetch or pack it again"
        ) from error
    secret = next((member.filename for member in members if member.flag_bits & ENCRYPTED), None)
    if secret is not None:
        raise DataError(f"{path}: {secret} is encrypted; unpack the archive and pack it again without a password")
    return members
