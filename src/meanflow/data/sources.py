"""One function that opens whatever the user named."""

import difflib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from .array_files import arrays
from .dataset import Dataset
from .embedded_digits import digits
from .errors import DataError
from .image_folder import ImageFolder
from .latent_cache import LatentCache, is_latent_cache
from .tensors import Tensors

NAMES: dict[str, Callable[[str], Dataset]] = {"digits": digits}
ARRAY_SUFFIXES = (".npy", ".npz")


def open_data(
    source: object,
    *,
    size: int | tuple[int, int] | None = None,
    skip_broken: bool = False,
    mode: str | None = None,
    split: str = "train",
) -> Dataset:
    """The data set that `source` means; a data set is returned as it is.

    source: a name ("digits"), a folder of images or of latents, a .npy or .npz file, a tensor, an array, or (x, cond).
        A name wins over a folder of the same name; "./digits" is the folder.
    size, skip_broken, mode: those of ImageFolder; size and mode are refused where they would change others.
    split: "train", "held_out" or "all"; only named data have a held-out part.
    Raises DataError that says what was looked for.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _without_options(_wrapped(source), size, mode, split)
    if isinstance(source, str) and source in NAMES:
        return _without_options(NAMES[source](split), size, mode, "all")
    path = Path(source).expanduser()
    if is_latent_cache(path):
        return _without_options(LatentCache(path), size, mode, split)
    if path.is_dir():
        _check_split(str(path), split)
        return ImageFolder(path, size, skip_broken=skip_broken, mode=mode)
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return _without_options(arrays(path), size, mode, split)
    raise DataError(_unknown(str(source), path))


def _wrapped(source: object) -> Dataset:
    if isinstance(source, (Tensor, np.ndarray)):
        return Tensors(source)
    if isinstance(source, tuple) and len(source) == 2:
        return Tensors(*source)
    if isinstance(source, Dataset):
        return source
    raise DataError(
        f"cannot read data from {type(source).__name__}; pass a name, a path, a tensor, a pair "
        f"(x, cond) or an object with shape, classes, class_names, len, batch and description"
    )


def _without_options(data: Dataset, size: int | tuple[int, int] | None, mode: str | None, split: str) -> Dataset:
    name = getattr(data, "source", type(data).__name__)
    wanted = (size, size) if isinstance(size, int) else size
    if wanted is not None and tuple(data.shape[1:]) != tuple(wanted):
        raise DataError(
            f"{name}: size={size} is for image folders, these samples are {list(data.shape)}; "
            f"leave it out or resize the array beforehand"
        )
    if mode is not None and data.shape[0] != {"L": 1, "RGB": 3}.get(mode):
        raise DataError(
            f"{name}: mode={mode!r} is for image folders, these samples are {list(data.shape)}; "
            f"leave it out or convert the array beforehand"
        )
    _check_split(name, split)
    return data


def _check_split(name: str, split: str) -> None:
    if split not in ("train", "all"):
        raise DataError(
            f"{name}: has no split {split!r}, only named data ({', '.join(NAMES)}) have; pass "
            f"the folder or file of that part itself"
        )


def _unknown(source: str, path: Path) -> str:
    if path.exists():
        return f"{source}: is neither a folder nor a .npy or .npz file; unpack or convert it first"
    close = difflib.get_close_matches(source.lower(), NAMES, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "check the path"
    return (
        f"{source}: there is no data set of this name (known: {', '.join(NAMES)}), and no folder and no "
        f"file at {path.absolute()}; {hint}"
    )
