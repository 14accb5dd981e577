"""What every data set offers: the only face of the data that the rest of the library sees.

A data set may also draw at random, such as latents from their posterior, or images flipped by a coin. It then declares
`random = True` and takes a second argument, `batch(indices, generator=None)`: with a torch generator on the CPU, whose
state alone decides the draw, it draws; without one it gives the same samples every time. `batches` passes a generator
seeded from the run's seed and the position, so a resumed run sees the draws of an uninterrupted one.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..core.conditions import Cond


@runtime_checkable
class Dataset(Protocol):
    """Indexed samples of one shape, with or without a condition each; images are (C, H, W) in [-1, 1]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    @property
    def classes(self) -> int | None:
        """Number of classes; None where the condition is no class label."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One name a class, or None."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Cond]:
        """Samples float32 [B, *shape]; None, conditions [B, ...] (labels int64 [B]) or a dict of them."""

    def description(self) -> dict[str, Any]:
        """What identifies the data, ready for JSON; `fingerprint` differs when the data differ."""


@runtime_checkable
class RandomDataset(Dataset, Protocol):
    """A data set that draws at random where it is given a generator."""

    random: bool

    def batch(self, indices: Sequence[int] | Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Cond]:
        """Samples and conditions as of any data set; drawn at random with a generator, always the same without."""


def draw(data: Dataset, indices: Sequence[int] | Tensor, seed: int) -> tuple[Tensor, Cond]:
    """A batch, at random from this seed where the data set draws at random."""
    if isinstance(data, RandomDataset) and data.random:
        return data.batch(indices, generator=torch.Generator().manual_seed(seed))
    return data.batch(indices)
