"""Runs that were published: one file of weights beside config.json, in a folder or on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

MODEL = "model.safetensors"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
WANTED = ["config.json", MODEL]  # data only; nothing that a hub holds is executed


def find(run: str | Path, revision: str | None = None) -> Path:
    """The folder of a run: as given where it exists, and fetched where it is a hub name such as "user/name".

    A name whose first part is a folder here is taken for a path. revision: branch, tag or commit on the hub.
    Raises FileNotFoundError saying what was looked for, and ValueError where huggingface_hub is missing.
    """
    folder = Path(run)
    if folder.exists() or not NAME.fullmatch(str(run)) or folder.parent.is_dir():
        return folder
    return _fetched(str(run), revision)


def is_published(folder: Path) -> bool:
    """Whether the folder holds published weights rather than checkpoints."""
    return (folder / MODEL).is_file()


def weights(folder: Path, config: dict[str, Any], ema: object = None, raw: bool = False) -> dict[str, Tensor]:
    """The published weights; raises ValueError when others are asked for, or the file is damaged."""
    said = config.get("published", {}).get("weights", "one kind of weights")
    asked = "raw" if raw else None if ema is None else f"EMA {ema}"
    if asked not in (None, said):
        raise ValueError(f"{folder} was published with {said}; {asked} is not in it. Leave the choice out")
    try:
        return load_file(folder / MODEL)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / MODEL} is damaged: {error}; fetch or publish it again") from error


def _fetched(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{name} is no folder here, and to look for it on the Hugging Face hub huggingface_hub is needed; "
            "install it with pip install 'meanflow[hub]'"
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=WANTED))
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"{name} is neither a folder here nor a model on the Hugging Face hub") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(
            f"{name} is no folder here, is not in the cache of the Hugging Face hub, and the hub could not be reached "
            f"({type(error).__name__}); check the name and the connection"
        ) from error
