"""One function that opens whatever the user named."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset

from .._hint import did_you_mean
from .array_files import arrays
from .arrow_images import arrow, is_saved, parquet, parquet_paths, saved
from .cifar import cifar, is_cifar
from .dataset import Dataset
from .embedded_digits import digits
from .encoded_images import EncodedImages, ImageOptions
from .errors import DataError
from .idx_files import idx, idx_folder, is_idx
from .image_folder import ImageFolder
from .latent_cache import LatentCache, is_latent_cache
from .listing import check_split, no_split
from .prepared import is_prepared, prepared
from .samples import Samples
from .sequences import Sequences, has_lengths, read_sequences
from .shards import shard_paths, shards
from .streams import Stream
from .tables import table
from .tensors import Tensors
from .zip_images import zip_images

NAMES: dict[str, Callable[[str], Dataset]] = {"digits": digits}
KINDS = "folder of images, .zip, .tar, .parquet, .npy, .npz, .csv, idx files, CIFAR as .tar.gz"
PACKED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def open_data(
    source: object,
    *,
    size: int | tuple[int, int] | None = None,
    skip_broken: bool = False,
    mode: str | None = None,
    split: str = "train",
    cond: str | None = None,
    workers: int = 0,
    threads: int | None = None,
) -> Dataset:
    """The data set that `source` means; a data set is returned as it is.

    source: a list of sequences [C, L] of different lengths, or (list, cond);
        a name ("digits"); a path to a folder of images, a .zip, .tar (or a pattern such as part-{000..099}.tar, or
        a folder of them), .parquet (or a folder of them), a folder saved by Hugging Face datasets, the files of MNIST
        or CIFAR, .npy, .npz, .csv, or what `encode` or `prepare` wrote; a tensor, an array, or (x, cond); a torch
        Dataset; anything that can be iterated, or a function that returns an iterator. A name wins over a folder of the
        same name; "./digits" is the folder.
    size, skip_broken, mode: those of ImageOptions; size and mode are refused where they would change others.
    split: "train", "held_out" or "all", where the format or the layout of folders has a held-out part.
    cond: the columns that are conditions, "none" for no conditions; by default the labels, else all attributes.
    workers: processes that read beside a training, 0 for threads only. threads: those that decode, one a core.
    Raises DataError that says what was looked for.
    """
    if not isinstance(workers, int) or workers < 0:
        raise DataError(f"workers must be 0 or more processes, got {workers!r}; 0 reads in threads")
    options = ImageOptions(size, mode, skip_broken, threads)
    if not isinstance(source, (str, os.PathLike)):
        data = _in_memory(_wrapped(source), split, cond)
    elif isinstance(source, str) and source in NAMES:
        data = _in_memory(NAMES[source](split), "all", cond)
    else:
        data = _from_path(str(source), Path(source).expanduser(), options, split, cond)
    if not isinstance(data, EncodedImages):
        _check_options(data, options)
    if workers:
        data.workers = workers  # type: ignore[attr-defined]
    return data


def _from_path(source: str, path: Path, options: ImageOptions, split: str, cond: str | None) -> Dataset:
    if path.is_dir():
        return _from_folder(path, options, split, cond)
    suffix = path.suffix.lower()
    if suffix == ".tar" and not source.lower().endswith(PACKED_TARS):
        return shards(shard_paths(source), source, options, split=split, cond=cond)
    if suffix == ".parquet":
        return parquet(shard_paths(source), source, options, split=split, cond=cond)
    if suffix in (".npy", ".npz"):
        if suffix == ".npz" and has_lengths(path):
            return _whole(read_sequences(path, cond=cond), split)
        return _whole(arrays(path, cond=cond), split)
    if not path.is_file():
        raise DataError(_unknown(source, path))
    if suffix == ".zip":
        return zip_images(path, options, split=split, cond=cond)
    if is_idx(path):
        return idx(path, split=split, cond=cond)
    if path.name.lower().endswith(PACKED_TARS):
        return cifar(path, split=split, cond=cond)
    if suffix == ".arrow":
        return arrow(path, options, split=split, cond=cond)
    if suffix == ".csv":
        return _whole(table(path, cond=cond), split)
    raise DataError(_unknown(source, path))


def _from_folder(path: Path, options: ImageOptions, split: str, cond: str | None) -> Dataset:
    """What a folder holds, told by its files."""
    if is_latent_cache(path):
        return _in_memory(LatentCache(path), split, cond)
    if is_prepared(path):
        return _whole(prepared(path, cond=cond), split)
    if is_saved(path):
        return saved(path, options, split=split, cond=cond)
    if is_cifar(path):
        return cifar(path, split=split, cond=cond)
    if idx_folder(path):
        return idx(path, split=split, cond=cond)
    if tables := parquet_paths(path):
        return parquet(tables, str(path), options, split=split, cond=cond)
    if archives := shard_paths(str(path)):
        return shards(archives, str(path), options, split=split, cond=cond)
    return ImageFolder(
        path,
        options.size,
        skip_broken=options.skip_broken,
        mode=options.mode,
        threads=options.threads,
        split=split,
        cond=cond,
    )


def _wrapped(source: object) -> Dataset:
    if isinstance(source, (Tensor, np.ndarray)):
        return Tensors(source)
    if isinstance(source, tuple) and len(source) == 2:
        return Sequences(*source) if isinstance(source[0], list) else Tensors(*source)
    if isinstance(source, list) and source and isinstance(source[0], Tensor | np.ndarray):
        return Sequences(source)
    if isinstance(source, Dataset):
        return source
    if isinstance(source, IterableDataset):
        return Stream(source)
    if isinstance(source, TorchDataset):
        return Samples(source)  # type: ignore[arg-type]
    if not isinstance(source, (list, tuple, dict, set, bytes)) and (isinstance(source, Iterable) or callable(source)):
        return Stream(source)
    raise DataError(
        f"cannot read data from {type(source).__name__}; pass a name, a path, a tensor, a pair "
        f"(x, cond), a torch Dataset, an iterable without length, or an object with shape, classes, class_names, len, "
        f"batch and description"
    )


def _in_memory(data: Dataset, split: str, cond: str | None) -> Dataset:
    name = getattr(data, "source", type(data).__name__)
    if cond is not None:
        raise DataError(f"{name}: cond={cond!r} chooses columns of files; these data come with their conditions")
    return _whole(data, split)


def _whole(data: Dataset, split: str) -> Dataset:
    """The data, which have no split; DataError if one was asked for."""
    name = getattr(data, "source", type(data).__name__)
    check_split(name, split)
    if split == "held_out":
        raise no_split(name, split)
    return data


def _check_options(data: Dataset, options: ImageOptions) -> None:
    name = getattr(data, "source", type(data).__name__)
    if options.pair is not None and tuple(data.shape[1:]) != options.pair:
        raise DataError(
            f"{name}: size={options.size} is for encoded images, these samples are {list(data.shape)}; "
            f"leave it out or resize the array beforehand"
        )
    if options.mode is not None and data.shape[0] != {"L": 1, "RGB": 3}.get(options.mode):
        raise DataError(
            f"{name}: mode={options.mode!r} is for encoded images, these samples are {list(data.shape)}; "
            f"leave it out or convert the array beforehand"
        )


def _unknown(source: str, path: Path) -> str:
    if path.exists():
        return f"{source}: is none of the known kinds ({KINDS}); unpack or convert it first"
    return (
        f"{source}: there is no data set of this name (known: {', '.join(NAMES)}), and no folder and no "
        f"file at {path.absolute()}{did_you_mean(source.lower(), NAMES, '; check the path')}"
    )
