"""Data that is already an array: own tensors, numpy arrays and memory maps."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.conditions import Cond
from ..core.conditions import take as take_rows
from . import fingerprint
from .conditions import check_classes, check_cond
from .rows import as_rows, take
from .values import check_dtype, check_floats, check_shape


class Tensors:
    """A data set around x [N, ...] and, if there are conditions, cond.

    x: floats, or uint8 images [N, C, H, W], which become x / 127.5 - 1 when a batch is drawn. Float images
        lie in [-1, 1] already. A numpy memory map stays on disk (above 256 MiB its values are checked on
        sampled rows only).
    cond: integers [N] are class labels; else floats [N, D, ...] or a nested dict of tensors [N, ...].
    classes: number of classes, by default the largest label plus one.
    image: None takes 4 dimensions with 1 or 3 channels for images; say False for, e.g., latents with 3.
    values: what the whole numbers of an attribute mean, by its name.
    source: what error messages and `description` call these data.
    Raises DataError, which names the first offending row, for data that would spoil a training run.
    """

    def __init__(
        self,
        x: Tensor | np.ndarray[Any, Any],
        cond: object = None,
        *,
        classes: int | None = None,
        class_names: Sequence[str] | None = None,
        image: bool | None = None,
        values: Mapping[str, Sequence[str]] | None = None,
        source: str = "tensors",
    ) -> None:
        rows = as_rows(x, f"{source}: x")
        self.image = check_shape(rows, image, source)
        check_dtype(rows, self.image, source)
        if isinstance(rows, Tensor) and rows.is_floating_point():
            rows = rows.float()
        self._rows = rows
        if not self.is_bytes:
            check_floats(rows, self.image, source)
        self._cond = check_cond(cond, len(rows), source)
        self.class_names = tuple(class_names) if class_names is not None else None
        self.classes = check_classes(self._cond, classes, self.class_names, source)
        self.shape: tuple[int, ...] = tuple(rows.shape[1:])
        self.values = {name: tuple(names) for name, names in (values or {}).items()}
        self.source = source

    @property
    def conditions(self) -> Cond:
        """Those of all samples."""
        return self._cond

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Cond]:
        """Samples float32 [B, *shape] and their conditions."""
        index = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        x = take(self._rows, index).float()
        return x.div_(127.5).sub_(1) if self.is_bytes else x, take_rows(self._cond, index)

    def description(self) -> dict[str, Any]:
        """Kind, source, length, shape, classes and fingerprint, ready for JSON."""
        return {
            "kind": "tensors",
            "source": self.source,
            "length": len(self),
            "shape": list(self.shape),
            "classes": self.classes,
            "fingerprint": self._fingerprint,
        }

    @property
    def is_bytes(self) -> bool:
        """Whether the samples are uint8 images / 127.5 - 1."""
        return self._rows.dtype in (torch.uint8, np.uint8)

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint.of_rows(self._rows, self._cond)
