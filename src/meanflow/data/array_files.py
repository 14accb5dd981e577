"""Arrays from .npy and .npz files."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError
from .tensors import Tensors
from .values import CHANNELS, LATENT_CHANNELS

X_KEYS = ("images", "x", "latents", "data", "arr_0")
COND_KEYS = ("labels", "y", "label", "cond", "arr_1")
# what numpy.load lets through from the header parser, zipfile and zlib
BROKEN = (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)
Array = np.ndarray[Any, Any]


def arrays(path: str | Path, *, image: bool | None = None) -> Tensors:
    """The samples of a .npy file (memory-mapped) or of a .npz file (with conditions, if it has them).

    Keys of a .npz: one of images, x, latents, data, arr_0 and, for conditions, one of labels, y, label, cond, arr_1.
    Images may be [N, C, H, W], [N, H, W, C] with 1 or 3 channels (where both fit, channels come first), or
    uint8 [N, H, W]; square latents have their 4, 8, 16 or 32 channels first or last. Floats [N, H, W] are images with
    image=True only: they may as well be sequences.
    Pickled objects are never loaded. Raises DataError naming the file.
    """
    path = Path(path)
    x, cond = _read(path)
    return Tensors(x if image is False else _channels_first(x, image), cond, image=image, source=str(path))


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
    except BROKEN as error:
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
    return stored[samples[0]], stored[conds[0]] if conds else None


def _channels_first(x: Array, image: bool | None) -> Array:
    if x.ndim == 3 and (image or x.dtype == np.uint8):
        return x[:, None]
    if x.ndim == 4 and x.shape[3] in CHANNELS and x.shape[1] not in CHANNELS:
        return x.transpose(0, 3, 1, 2)
    if x.ndim == 4 and x.shape[3] in LATENT_CHANNELS and x.shape[1] == x.shape[2] != x.shape[3]:
        return x.transpose(0, 3, 1, 2)
    return x
