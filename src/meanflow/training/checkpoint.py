"""Checkpoints: folders that are whole or absent, with checksums, as safetensors and JSON."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

Files = dict[str, dict[str, Tensor]]
STATE = "state.json"


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, or belongs to another run."""


def write_text(path: Path, text: str) -> None:
    """Replace a file by new text, whole or not at all."""
    aside = path.with_name(f".{path.name}.tmp")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def save(folder: Path, name: str, files: Files, state: dict[str, Any], keep: int) -> Path:
    """Write checkpoint `name` under `folder`; afterwards only the newest `keep` remain.

    Written under another name, synced, then renamed: whatever happens, the ones before stay whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        sums = {}
        for file, tensors in files.items():
            path = aside / file
            save_file(_unshared(tensors), path)
            sync(path)
            sums[file] = _sha256(path)
        write_text(aside / STATE, json.dumps({**state, "sha256": sums}, indent=1))
        sync(aside)
        target = folder / name
        if target.exists():
            shutil.rmtree(target)
        os.rename(aside, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"could not save checkpoint {folder / name}: {error}. The checkpoints before it are untouched; "
            "free some space and give the same command again to go on from the newest"
        ) from error
    sync(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(p for p in folder.glob("*") if not p.name.startswith(".") and p.is_dir())


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint; raises CheckpointError when it is missing or damaged."""
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        if not isinstance(state, dict) or not isinstance(state.get("sha256"), dict):
            raise ValueError("it is not the state of a checkpoint")
        return state
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint / STATE} cannot be read: {error}") from error


def read(checkpoint: Path, file: str) -> dict[str, Tensor]:
    """Tensors of one file of a checkpoint; raises CheckpointError naming a file that is damaged."""
    path = checkpoint / file
    wanted = read_state(checkpoint).get("sha256", {}).get(file)
    if wanted is None or not path.is_file():
        raise CheckpointError(f"{path} is missing; this checkpoint is not whole")
    if _sha256(path) != wanted:
        raise CheckpointError(
            f"{path} is damaged: its checksum is not the one written when it was saved. Delete the folder "
            f"{checkpoint.name} to use the checkpoint before it"
        )
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each with memory of its own: safetensors refuses tied weights otherwise."""
    seen: set[int] = set()
    alone = {}
    for name, value in tensors.items():
        copy = value.detach().contiguous().cpu()
        address = copy.untyped_storage().data_ptr()
        alone[name] = copy.clone() if address in seen else copy
        seen.add(address)
    return alone


def sync(path: Path) -> None:
    """Make sure that a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
