"""What judging keeps on the disk: weights of feature networks, and features that were computed once."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..data.files import sha256_of, whole_file

FOLDER = "MEANFLOW_CACHE"
"""Environment variable that moves the cache folder."""


def cache_folder() -> Path:
    """$MEANFLOW_CACHE, else meanflow in $XDG_CACHE_HOME, else ~/.cache/meanflow."""
    if named := os.environ.get(FOLDER):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "meanflow"


def key_of(about: dict[str, Any]) -> str:
    """sha256 of a JSON-able description."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def keep(kind: str, about: dict[str, Any], tensors: dict[str, Tensor], extra: dict[str, Any]) -> None:
    """Write tensors under the key of their description, whole or not at all; a folder that cannot be is warned of."""
    path = _path(kind, about)
    head = {"about": json.dumps(about), "extra": json.dumps(extra), "sha256": hash_tensors(tensors)}
    try:
        with whole_file(path, shared=True) as aside:
            save_file({name: value.contiguous() for name, value in tensors.items()}, aside, metadata=head)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"{path} cannot be written ({error}), so this is computed anew each time; "
            f"set {FOLDER} to a folder with room",
            stacklevel=2,
        )


def kept(kind: str, about: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors of `keep` and what was said with them; None where there are none, with a warning for damaged ones."""
    path = _path(kind, about)
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            head = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if json.loads(head["about"]) != json.loads(json.dumps(about)) or head["sha256"] != hash_tensors(tensors):
            raise ValueError("its content does not fit its checksum")
        return tensors, json.loads(head["extra"])
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        warnings.warn(f"{path} is damaged ({error}) and computed anew", stacklevel=2)
        return None


def _path(kind: str, about: dict[str, Any]) -> Path:
    return cache_folder() / f"{kind}-{key_of(about)[:32]}.safetensors"


def weights_file(name: str, file: str, sha256: str | None, url: str | None, path: str | Path | None) -> Path:
    """The file of weights, its hash checked: at `path`, in the cache folder, in that of torch.hub, or downloaded.

    sha256: all or the beginning of the wanted hash. Raises FileNotFoundError where it cannot be had, and ValueError
    for another file.
    """
    places = [cache_folder() / "weights" / file, Path(torch.hub.get_dir()) / "checkpoints" / file]
    if path is not None:
        places = [Path(path).expanduser()]
        if not places[0].is_file():
            raise FileNotFoundError(f"{path}: there is no such file; it should hold the weights of {name}")
    found = next((place for place in places if place.is_file()), None)
    found = found or _downloaded(name, places[0], sha256, url)
    came = file_hash(found)
    if sha256 is not None and not came.startswith(sha256):
        raise ValueError(
            f"{found}: its sha256 is {came[:16]}..., the weights of {name} have {sha256[:16]}...; other weights make "
            "other features, so nothing would compare. Fetch the file again"
        )
    return found


def _downloaded(name: str, place: Path, sha256: str | None, url: str | None) -> Path:
    what = f"the features {name} need {place.name}"
    if url is None:
        raise FileNotFoundError(f"{what}, which is not at {place}; pass its path with extractor_weights=")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(place), hash_prefix=sha256, progress=False)
    except (URLError, OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{what}, which is not at {place} and could not be fetched from {url} ({error}). Without network: fetch it "
            "elsewhere and put it there, or pass its path with extractor_weights="
        ) from error
    return place


def file_hash(path: Path) -> str:
    """sha256 of a file; computed once for each time of its last change."""
    return _file_hash(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _file_hash(path: Path, _changed: int) -> str:
    return sha256_of(path)
