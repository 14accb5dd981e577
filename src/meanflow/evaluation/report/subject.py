"""What a report is about: a trained network, the data it learnt from, and what its training wrote down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...core.conditions import Cond, map_cond
from ...core.sampling import noise_for, sample
from ...data import Dataset
from ..pictures import drawable

BATCH = 256  # samples in a network call while drawing; our choice
FIRST_SEED = 2_000_000
"""Seeds of the samples that reports show: neither those of training's grids nor those that are judged."""


class LeftOut(Exception):
    """A section that this run cannot have, with the reason in words."""


@dataclass(frozen=True)
class Subject:
    """A network to be reported on.

    net: as `load` gives it. about: lines of what it is, by name. train, held_out: the data it was trained on and data
    that it never saw, None where they are not at hand; why_no_data says why. decode: latents to images in [-1, 1].
    metrics: records of metrics.jsonl. history: (images seen, network) at kept checkpoints, each loaded when called.
    """

    name: str
    net: nn.Module
    about: dict[str, str]
    train: Dataset | None = None
    held_out: Dataset | None = None
    why_no_data: str = "the data that it was trained on are not at hand"
    decode: Callable[[Tensor], Tensor] | None = None
    metrics: Sequence[dict[str, Any]] = ()
    history: Sequence[tuple[int, Callable[[], nn.Module]]] = field(default=())

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a sample as the network makes it."""
        return tuple(self.net.shape)  # type: ignore[arg-type]

    @property
    def classes(self) -> int | None:
        """Number of classes that the network knows."""
        null = getattr(self.net, "null", None)
        return null if isinstance(null, int) else None

    def class_name(self, i: int) -> str:
        """Name of a class, its number where it has none."""
        names = self.train.class_names if self.train is not None else None
        return names[i] if names else str(i)

    @property
    def draws_images(self) -> bool:
        """Whether its samples are images, after decoding."""
        return self.decode is not None or (len(self.shape) == 3 and drawable(self.shape))


def draw(subject: Subject, noise: Tensor, cond: Cond, steps: int) -> Tensor:
    """Samples [B, *shape] on the CPU, decoded where the run has a decoder."""
    device = next(subject.net.parameters()).device
    parts = []
    for start in range(0, len(noise), BATCH):
        rows = slice(start, start + BATCH)
        part = map_cond(lambda c, rows=rows: c[rows].to(device), cond)
        x = sample(subject.net, noise[rows].to(device), part, steps=steps)
        parts.append((subject.decode(x) if subject.decode is not None else x).float().cpu())
    return torch.cat(parts)


def noise_of(subject: Subject, count: int, first: int = 0) -> Tensor:
    """Noise of the seeds FIRST_SEED + first and following."""
    return noise_for(subject.net, range(FIRST_SEED + first, FIRST_SEED + first + count))


def conditions(subject: Subject, count: int) -> Cond:
    """Classes in turn, or the conditions of the first training samples, or none.

    Raises LeftOut where the network needs conditions that are no classes and the data are not at hand.
    """
    if subject.classes is not None:
        return torch.arange(count) % subject.classes
    if subject.train is None:
        return None
    cond = subject.train.batch([i % len(subject.train) for i in range(count)])[1]
    return cond
