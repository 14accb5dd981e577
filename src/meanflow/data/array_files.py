"""Arrays from .npy and .npz files."""

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .tensors import Tensors
from .values import CHANNELS, LATENT_CHANNELS

X_KEYS = ("images", "x", "latents", "data", "arr_0")
COND_KEYS = ("labels", "y", "label", "cond", "arr_1")
Array = np.ndarray[Any, Any]


def arrays(path: str | Path, *, image: bool | None = None, cond: str | None = None) -> Tensors:
    """The samples of a .npy file or of a .npz file (with conditions, if it has them).

    They stay on disk (memory-mapped) in a .npy and in a .npz of numpy.savez; one of numpy.savez_compressed is unpacked
    into memory. cond="none" leaves the conditions out.

    Keys of a .npz: one of images, x, latents, data, arr_0 and, for conditions, one of labels, y, label, cond, arr_1.
    Images may be [N, C, H, W], [N, H, W, C] with 1 or 3 channels (where both fit, channels come first), or
    uint8 [N, H, W]; square latents have their 4, 8, 16 or 32 channels first or last. Floats [N, H, W] are images with
    image=True only: they may as well be sequences.
    Pickled objects are never loaded. Raises DataError naming the file.
    """
    path = Path(path)
    x, stored = _read(path)
    if cond not in (None, "none", "label"):
        raise DataError(f"{path}: there is no column {cond!r} for a condition, only labels; leave it out, or say none")
    rows = x if image is False else _channels_first(x, image)
    return Tensors(rows, None if cond == "none" else stored, image=image, source=str(path))


def _read(path: Path) -> tuple[Array, Array | None]:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; pass the path of a .npy or .npz file")
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None
        with loaded:
            return _pick(loaded, path)
    except DataError:
        raise
    # numpy.load lets through what the header parser, zipfile and zlib raise, up to tokenize.TokenError
    except Exception as error:
        raise DataError(
            f"{path}: cannot be read as plain numpy arrays ({error}); write it again with "
            f"numpy.save or numpy.savez, numbers only (no object arrays)"
        ) from error


def _pick(stored: "np.lib.npyio.NpzFile", path: Path) -> tuple[Array, Array | None]:
    found = list(stored.keys())
    samples, conds = ([key for key in found if key in keys] for keys in (X_KEYS, COND_KEYS))
    if len(samples) != 1 or len(conds) > 1 or len(samples) + len(conds) != len(found):
        raise DataError(
            f"{path}: found the keys {', '.join(found) or '(none)'}; wanted one of "
            f"{', '.join(X_KEYS)} and at most one of {', '.join(COND_KEYS)}; rename or drop the "
            f"others"
        )
    mapped = _mapped(path, samples[0])
    return stored[samples[0]] if mapped is None else mapped, stored[conds[0]] if conds else None


def _mapped(path: Path, key: str) -> Array | None:
    """An array of a .npz where it lies in the file; None for one that is compressed or cannot be mapped."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        member = archive.getinfo(f"{key}.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            return None
        # the local header (PKWARE APPNOTE 4.3.7) has 30 bytes and the lengths of name and extra field in its last 4
        file.seek(member.header_offset)
        header = file.read(30)
        file.seek(sum(struct.unpack("<HH", header[26:])), 1)
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            return None
        shape, fortran, dtype = readers[version](file)
        if dtype.hasobject or 0 in shape or not shape:
            return None
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def _channels_first(x: Array, image: bool | None) -> Array:
    if x.ndim == 3 and (image or x.dtype == np.uint8):
        return x[:, None]
    if x.ndim == 4 and x.shape[3] in CHANNELS and x.shape[1] not in CHANNELS:
        return x.transpose(0, 3, 1, 2)
    if x.ndim == 4 and x.shape[3] in LATENT_CHANNELS and x.shape[1] == x.shape[2] != x.shape[3]:
        return x.transpose(0, 3, 1, 2)
    return x
