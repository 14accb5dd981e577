"""What a checkpoint holds, how it is collected from one process or many, and how a run goes on from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from ..objectives import Objective
from . import checkpoint
from .checkpoint import CheckpointError, Files
from .ema import EMA
from .parallel import World, full, like_shards, local
from .posthoc import PROFILES, profile_file
from .run import TRAINING, WEIGHTS, ema_file
from .settings import Training

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class State:
    """Everything that a step changes; step: optimiser steps done, slices: parts in which a batch is drawn."""

    objective: Objective
    optimizer: torch.optim.Optimizer
    ema: EMA
    step: int = 0
    slices: int = 1


def snapshot(state: State, metrics: list[Any], s: Training, world: World) -> tuple[Files, dict[str, Any]] | None:
    """A copy in CPU memory of all that a checkpoint keeps, on rank 0; None on the others.

    Weights, averages and moments are whole tensors under one set of names whatever the processes and the way they
    share the model, so a run can go on with any other.
    """
    moments = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in state.optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    files: dict[str, dict[str, Tensor]] = {WEIGHTS: state.objective.state_dict(), TRAINING: moments}
    files |= averages_of(state.ema)
    copies = {file: _copied(tensors, world) for file, tensors in files.items()}
    about = {
        "step": state.step,
        "images": min(state.step * s.batch, s.images),
        "ema_updates": state.ema.updates,
        "slices": state.slices,
        "milestone": is_milestone(state.step, s),
        "metrics": metrics,
    }
    return (copies, about) if world.first else None


def write(folder: Path, files: Files, about: dict[str, Any], keep: int) -> Path:
    """Write a snapshot; raises FloatingPointError instead of saving weights that are not finite."""
    bad = [name for name, value in files[WEIGHTS].items() if not bool(value.isfinite().all())]
    if bad:
        raise FloatingPointError(
            f"weights are not finite (first: {bad[0]}); nothing was saved over the last checkpoint. "
            "Lower the learning rate, or look for extreme values in the data"
        )
    return checkpoint.save(folder / "checkpoints", f"{about['images']:012d}", files, about, keep)


def averages_of(ema: EMA) -> dict[str, dict[str, Tensor]]:
    """Every average under the name of its file, in the order in which the EMA loads them."""
    plain = {ema_file(decay): average for decay, average in ema.averages.items()}
    return plain | {profile_file(sigma): average for sigma, average in ema.profiles.items()}


def snapshot_profiles(state: State, s: Training, world: World) -> tuple[Files, dict[str, Any]] | None:
    """A copy in CPU memory of the power-function averages alone, on rank 0; None on the others.

    "steps" in its JSON part is the step at which they last moved.
    """
    copies = {profile_file(sigma): _copied(average, world) for sigma, average in state.ema.profiles.items()}
    about = {
        "images": min(state.step * s.batch, s.images),
        "steps": state.ema.updates // state.ema.every * state.ema.every,
        "sigmas": list(state.ema.profiles),
        "milestone": True,  # none of them is ever deleted to save space
    }
    return (copies, about) if world.first else None


def write_profiles(folder: Path, files: Files, about: dict[str, Any]) -> Path:
    """Write a snapshot of the power-function averages."""
    return checkpoint.save(folder / PROFILES, f"{about['images']:012d}", files, about, keep=1)


def is_milestone(step: int, s: Training) -> bool:
    """Whether the state after `step` steps is kept for ever."""
    every = s.milestone_every
    return every is not None and step * s.batch // every > (step - 1) * s.batch // every


def _explained(function: Callable[P, T]) -> Callable[P, T]:
    """Turn what a checkpoint of unfitting contents leads to into a CheckpointError."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except CheckpointError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
            raise CheckpointError(
                f"the newest checkpoint is whole but does not fit this run ({type(error).__name__}: {error}); it may "
                "be of another version of meanflow. Move it away to go on from the one before, or choose another folder"
            ) from error

    return call


@_explained
def resume(folder: Path, state: State, world: World) -> dict[str, Any] | None:
    """Restore the newest whole checkpoint and return its JSON part.

    Without a checkpoint nothing changes and the result is None. A damaged newest one is said loudly and the one before
    is taken; raises CheckpointError when all are damaged.
    """
    path = world.once(lambda: checkpoint.newest_whole(folder / "checkpoints"))
    if path is None:
        return None
    # Every process reads for itself; the first has found the checksums right.
    about = checkpoint.read_state(path)
    files = [WEIGHTS, TRAINING, *averages_of(state.ema)]
    weights, moments, *averages = world.together(lambda: [checkpoint.read(path, file) for file in files])
    for name, value in state.objective.state_dict().items():
        local(value).copy_(local(like_shards(weights[name], value)))
    _load_moments(state.optimizer, moments)
    state.ema.load(averages)
    state.ema.updates, state.step = about["ema_updates"], int(about["step"])
    return about


def _copied(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    # Whole tensors are gathered by all processes together, one at a time, and kept by the first alone.
    copies = {}
    for name, value in tensors.items():
        whole = full(value.detach())
        if world.first:
            copies[name] = whole.to("cpu", copy=True)
    return copies


def _load_moments(optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]) -> None:
    state = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in moments.items():
        index, name = key.split(".", 1)
        if value.ndim and value.shape != parameters[int(index)].shape:
            raise ValueError(f"{key} of shape {list(value.shape)} for {list(parameters[int(index)].shape)}")
        shaped = like_shards(value, parameters[int(index)]) if value.ndim else value
        state["state"].setdefault(int(index), {})[name] = shaped
    optimizer.load_state_dict(state)


def _is_gathered(value: Any) -> bool:
    """Whether this is what Log.carried returns."""
    groups = value.get("groups") if isinstance(value, dict) else None
    if not isinstance(groups, list) or not isinstance(value.get("skipped"), int):
        return False
    return all(
        isinstance(g, list) and len(g) == 3 and isinstance(g[0], list) and isinstance(g[1], list) for g in groups
    )


def own_metrics(about: dict[str, Any], world: World) -> dict[str, Any] | None:
    """The metrics that this process had gathered since the last record.

    With another number of processes than before the first takes all and the rest nothing.
    """
    gathered: Any = about.get("metrics")
    if (
        not isinstance(gathered, list) or not all(map(_is_gathered, gathered)) or not gathered
    ):  # written before there were several processes; costs one line of metrics
        return None
    if len(gathered) == world.size:
        return gathered[world.rank]
    groups = [group for one in gathered for group in one["groups"]]
    return {"groups": groups if world.first else [], "skipped": gathered[0]["skipped"]}
