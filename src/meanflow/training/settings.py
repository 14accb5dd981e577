"""How a run trains; lengths are counted in images seen, the batch is the global batch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from .._hint import did_you_mean
from .profiles import check_length

# Of a run, unless said otherwise; our choice. From two averages kept at so many times, lengths from 0.04 to 0.15 come
# out within 0.3 % of the profile, 0.25 within 4 %.
SNAPSHOTS = 32


@dataclass(frozen=True)
class Training:
    """Settings of a training run; every length and interval is in images seen."""

    images: int = 400_000
    """Images to be seen before the run ends."""
    batch: int = 128
    """Images per step, over all processes."""
    accumulate: int = 1
    """Micro-batches in which a process works through its share of a step; more need less memory."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several processes (torchrun) share the work: auto and ddp copy the model, fsdp shards it."""
    checkpointing: bool = False
    """Activation checkpointing: recompute blocks going back, for less memory; takes the derivative in no_grad mode."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Optimiser."""
    lr: float = 1e-3
    """Learning rate after warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Averaging of gradient and squared gradient in the optimiser."""
    weight_decay: float = 0.0
    """Weight decay of the optimiser."""
    warmup: int = 0
    """Images over which the learning rate rises from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after warm-up: constant, or cosine down to 0 at the end."""
    clip: float | None = 1.0
    """Largest gradient norm; None = no clipping."""
    ema: tuple[float, ...] = (0.999,)
    """Decays of the averaged weights kept beside the raw ones; the first one is used for samples."""
    ema_every: int = 1
    """Steps after which the averages move on, with the decay to that power; they need not follow every step."""
    ema_start: Literal["warm", "full"] = "warm"
    """warm: early averages follow the weights; full: the whole decay from the first step, as in the authors' code."""
    ema_power: tuple[float, ...] = ()
    """Relative lengths of power-function averages, e.g. 0.05 0.1, from which any length is rebuilt after the run."""
    snapshot_every: int | None = None
    """Images between two snapshots of the power-function averages, all of which are kept; None makes 32 of them."""
    augment: Literal["none", "flip", "edm"] = "none"
    """Random changes of images: flip mirrors them; edm also scales, stretches and shifts, and tells the network."""
    compile: bool = False
    """Compile the training step with torch.compile; worth it on GPUs and for long runs."""
    seed: int = 0
    """Seed of the order of data, times, noise and dropout; from the command line also of the initial weights."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:1, or auto for the first GPU where there is one."""
    save_every: int = 100_000
    """Images between two checkpoints."""
    grid_every: int = 50_000
    """Images between two sample grids."""
    log_every: int = 6_400
    """Images between two lines of metrics."""
    keep: int = 2
    """Newest checkpoints kept."""
    milestone_every: int | None = None
    """Images between two checkpoints that are kept for ever; None keeps the newest ones only."""
    skip_limit: int = 10
    """Steps in a row whose gradient is not finite before the run stops; each of them is skipped and counted."""
    deadline: int = 25
    """Seconds after SIGTERM in which a step must end so that its state can be saved."""
    timeout: int = 600
    """Seconds after which a process stops waiting for another one."""
    loggers: tuple[Literal["tensorboard", "csv", "wandb"], ...] | None = None
    """Where metrics go besides metrics.jsonl; None is tensorboard where it is installed."""

    def __post_init__(self) -> None:
        for name in AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not self.lr > 0 or self.weight_decay < 0 or self.warmup < 0:
            raise ValueError(
                f"lr must be positive, weight_decay and warmup not negative; got lr={self.lr}, "
                f"weight_decay={self.weight_decay}, warmup={self.warmup}"
            )
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be positive, or None for no clipping; got {self.clip}")
        if not self.ema or not all(0 <= decay < 1 for decay in self.ema):
            raise ValueError(f"ema needs at least one decay, each in [0, 1); got {self.ema}")
        for sigma in self.ema_power:
            check_length(sigma)
        if self.snapshot_every is not None and not self.ema_power:
            raise ValueError("snapshot_every is for power-function averages; give their lengths in ema_power")

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return -(-self.images // self.batch)

    @property
    def snapshot_interval(self) -> int:
        """Images between two snapshots of the power-function averages."""
        return self.snapshot_every or max(self.images // SNAPSHOTS, 1)

    def due(self, step: int, every: int) -> bool:
        """Whether an interval of `every` images ended with step number `step` (from 1); the last step always counts."""
        return step == self.steps or (step * self.batch) // every > ((step - 1) * self.batch) // every


AT_LEAST_ONE = (
    "images",
    "batch",
    "accumulate",
    "save_every",
    "snapshot_every",
    "grid_every",
    "log_every",
    "keep",
    "ema_every",
    "milestone_every",
    "skip_limit",
    "deadline",
    "timeout",
)
# What may change between a run and its continuation: it changes nothing that is computed, except that the number of
# micro-batches, like that of processes, decides in how many slices a batch draws its times and noise.
FREE = (
    "device",
    "accumulate",
    "parallel",
    "save_every",
    "snapshot_every",
    "grid_every",
    "log_every",
    "keep",
    "milestone_every",
    "skip_limit",
    "deadline",
    "timeout",
    "loggers",
)


def settings(given: Training | None, options: dict[str, Any]) -> Training:
    """Training settings from an object and keyword options; raises TypeError for a name that is none."""
    names = [f.name for f in fields(Training)]
    for name in options:
        if name not in names:
            hint = did_you_mean(name, names, f"; options are {', '.join(names)}")
            raise TypeError(f"unknown training option {name!r}{hint}")
    base = {n: getattr(given, n) for n in names} if given else {}
    return Training(**{**base, **options})
