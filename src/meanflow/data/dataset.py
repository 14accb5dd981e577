"""What every data set offers: the only face of the data that the rest of the library sees."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

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
