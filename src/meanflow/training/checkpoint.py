"""Checkpoints: folders that are whole or absent, with checksums, as safetensors and JSON."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..data.files import sha256_of, whole_folder

Files = dict[str, dict[str, Tensor]]
STATE = "state.json"


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, or belongs to another run."""


def save(folder: Path, name: str, files: Files, state: dict[str, Any], keep: int) -> Path:
    """Write checkpoint `name` under `folder`; afterwards only the newest `keep` and the milestones remain.

    Written under another name, synced, then renamed: whatever happens, the ones before stay whole. A state with
    "milestone" true is kept for ever.
    """
    target, sums = folder / name, {}
    try:
        # One of this name can only be a damaged one that the run did not go on from.
        with whole_folder(target, replace=True) as aside:
            for file, tensors in files.items():
                path = aside / file
                save_file(_unshared(tensors), path)
                sums[file] = sha256_of(path)
            about = {**state, "sha256": sums}
            text = json.dumps({**about, "checksum": _sum_of(about)}, indent=1)
            (aside / STATE).write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"could not save checkpoint {folder / name}: {error}. The checkpoints before it are untouched; "
            "free some space and give the same command again to go on from the newest"
        ) from error
    _prune(folder, name, keep)
    return target


def _prune(folder: Path, newest: str, keep: int) -> None:
    """Delete what is neither a milestone nor among the newest `keep`.

    Also those that claim to be newer: the run went on from one before them because they are damaged, and they must
    not take the place of a whole one.
    """
    found = checkpoints(folder)
    stale = [path for path in found if int(path.name) > int(newest)]
    old = [path for path in found if int(path.name) <= int(newest)][:-keep]
    for path in stale + [path for path in old if not _is_milestone(path)]:
        # Out of sight first: a half-deleted one, left by a kill, would look like a damaged checkpoint.
        aside = folder / f".{path.name}.tmp"
        with suppress(OSError):
            os.rename(path, aside)
            shutil.rmtree(aside, ignore_errors=True)


def _is_milestone(path: Path) -> bool:
    try:
        return read_state(path).get("milestone") is True
    except CheckpointError:
        return False


def forget_unfinished(folder: Path) -> None:
    """Remove what a killed process was writing or deleting."""
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first; folders of other names, such as a user's own copies, are none."""
    found = [path for path in folder.glob("*") if _is_number(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint; raises CheckpointError when it is missing or damaged."""
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        if not isinstance(state, dict) or not isinstance(state.get("sha256"), dict):
            raise ValueError("it is not the state of a checkpoint")
        if state.get("checksum", _sum_of(state)) != _sum_of(state):
            raise ValueError("its checksum is not the one written when it was saved")
        return state
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{checkpoint / STATE} cannot be read: {error}") from error


def read(checkpoint: Path, file: str) -> dict[str, Tensor]:
    """Tensors of one file of a checkpoint that was found whole; raises CheckpointError when it cannot be read."""
    path = checkpoint / file
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def verify(checkpoint: Path, files: Iterable[str] | None = None) -> None:
    """Compare the files of a checkpoint, or those named, with their checksums; raises CheckpointError naming one."""
    sums = read_state(checkpoint)["sha256"]
    for file in sums if files is None else files:
        path = checkpoint / file
        if file not in sums or not path.is_file():
            raise CheckpointError(f"{path} is missing; this checkpoint is not whole")
        if sha256_of(path) != sums[file]:
            raise CheckpointError(f"{path} is damaged: its checksum is not the one written when it was saved")


def newest_whole(folder: Path, files: Iterable[str] | None = None) -> Path | None:
    """The newest checkpoint under `folder` in which all files, or those named, are whole; None without any.

    Warns of every damaged one that is passed over; raises CheckpointError when all are damaged.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            verify(path, files)
            return path
        except CheckpointError as error:
            warnings.warn(f"{error}. Taking the checkpoint before it", stacklevel=2)
    if found:
        raise CheckpointError(f"no checkpoint in {folder} is whole; train in another folder")
    return None


def _sum_of(state: dict[str, Any]) -> str:
    """Checksum of the JSON part itself, so that a changed digit in it is noticed too."""
    text = json.dumps({key: value for key, value in state.items() if key != "checksum"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


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
