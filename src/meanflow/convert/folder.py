"""A run folder made from a checkpoint of another code, and a run's checkpoint for the way back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..objectives import MeanFlow
from ..training import Training
from ..training.checkpoint import CheckpointError, newest_whole, read, read_state, save
from ..training.run import TRAINING, WEIGHTS, built, describe, ema_file, open_run, read_config

State = dict[str, Tensor]


@dataclass(frozen=True)
class Converted:
    """A checkpoint in our names: what another code's file says, and what such a file needs.

    code: name of the other code. source: the file. weights, averages: states of `net`, the averages by decay.
    moments: exp_avg and exp_avg_sq of Adam for every parameter, None where the file has none.
    objective: arguments of MeanFlow. training: options of Training. extra: what only the other code understands.
    """

    code: str
    source: str
    net: nn.Module
    weights: State
    averages: dict[float, State]
    moments: dict[str, State] | None
    step: int
    batch: int
    objective: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def description(self) -> dict[str, Any]:
        """What stands in the place of a data set in the run's config.json."""
        null = self.net.null
        return {
            "kind": "converted",
            "source": f"{self.code}: {self.source}",
            "shape": list(self.net.shape),  # type: ignore[arg-type]
            "classes": null if isinstance(null, int) else None,
            "extra": self.extra,
        }


def save_run(converted: Converted, out: Path) -> Path:
    """Write a run folder that load, sample and evaluate take; raises ValueError when `out` holds something else."""
    c = converted
    # A run has seen at least one image; a file from before the first step is named as if it had.
    images = max(c.step * c.batch, 1)
    settings = Training(images=images, batch=c.batch, ema=tuple(c.averages), **c.training)
    objective = MeanFlow(c.net, **c.objective)
    open_run(out, describe(objective, c, settings))  # type: ignore[arg-type]
    files = {WEIGHTS: _prefixed(c.weights)}
    files |= {ema_file(decay): _prefixed(average) for decay, average in c.averages.items()}
    if c.moments is not None:
        files[TRAINING] = {
            f"{i}.{key}": value
            for i, (name, _) in enumerate(c.net.named_parameters())
            for key, value in {**c.moments[name], "step": torch.tensor(float(c.step))}.items()
        }
    state = {"step": c.step, "images": images, "ema_updates": c.step, "metrics": {}}
    return save(out / "checkpoints", f"{images:012d}", files, state, keep=1)


def from_run(run: Path) -> Converted:
    """The newest checkpoint of a run; raises CheckpointError or ValueError saying what is wrong with it."""
    config, newest = read_config(run), newest_whole(run / "checkpoints")
    if newest is None:
        raise ValueError(f"{run} has no checkpoint yet; train it first")
    if config["objective"]["type"] != "MeanFlow":
        raise ValueError(f"{run} was trained by {config['objective']['type']}; the authors' code is for MeanFlow only")
    net = built(config, read(newest, WEIGHTS))
    state, training = read_state(newest), config["training"]
    return Converted(
        code="meanflow",
        source=run.name,
        net=net,
        weights=_fitting(newest, WEIGHTS, net),
        averages={decay: _fitting(newest, ema_file(decay), net) for decay in training["ema"]},
        moments=_moments(read(newest, TRAINING), net) if TRAINING in state["sha256"] else None,
        step=_step(state, newest),
        batch=int(training["batch"]),
        objective=config["objective"]["arguments"],
        training=training,
        extra=config["data"].get("extra", {}),
    )


def _step(state: dict[str, Any], checkpoint: Path) -> int:
    if not isinstance(state.get("step"), int):
        raise CheckpointError(f"{checkpoint}: its step is {state.get('step')!r}, wanted a whole number")
    return int(state["step"])


def check_names(source: object, found: Iterable[str], wanted: Iterable[str], what: str) -> None:
    """Raise ValueError naming the first arrays that are missing or unknown."""
    have, want = set(found), set(wanted)
    missing, unknown = sorted(want - have), sorted(have - want)
    if missing or unknown:
        parts = [f"{len(names)} {kind} (first: {names[0]})" for kind, names in _kinds(missing, unknown) if names]
        raise ValueError(f"{source}: {what} does not fit the network that its shapes describe: {', '.join(parts)}")


def check_shapes(source: object, state: State, net: nn.Module, what: str) -> None:
    """Raise ValueError naming the first array whose shape is not that of the network."""
    for name, value in net.state_dict().items():
        if state[name].shape != value.shape:
            raise ValueError(
                f"{source}: {what} has {name} of shape {list(state[name].shape)}, the network that the other shapes "
                f"describe needs {list(value.shape)}"
            )


def _kinds(missing: list[str], unknown: list[str]) -> list[tuple[str, list[str]]]:
    return [("arrays are missing", missing), ("arrays are unknown", unknown)]


def _fitting(newest: Path, file: str, net: nn.Module) -> State:
    """The tensors of a file, which must be those of the network."""
    state = _bare(read(newest, file))
    check_names(newest / file, state, net.state_dict(), "it")
    check_shapes(newest / file, state, net, "it")
    return state


def _prefixed(state: State) -> State:
    return {f"net.{name}": value for name, value in state.items()}


def _bare(state: State) -> State:
    return {name.removeprefix("net."): value for name, value in state.items()}


def _moments(saved: State, net: nn.Module) -> dict[str, State]:
    keys = ("exp_avg", "exp_avg_sq")
    wanted = {f"{i}.{key}" for i, _ in enumerate(net.parameters()) for key in keys}
    check_names("the run's newest checkpoint", {k for k in saved if not k.endswith(".step")}, wanted, TRAINING)
    return {name: {key: saved[f"{i}.{key}"] for key in keys} for i, (name, _) in enumerate(net.named_parameters())}
