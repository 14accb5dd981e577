"""Samples that come one by one from a user's own Python objects, put together into batches."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.conditions import Cond, map_cond
from . import fingerprint
from .errors import DataError
from .values import check_dtype, check_floats, check_shape

Batch = tuple[Tensor, Cond]
HEAD = 64  # our choice: samples looked at before anything else, and shown where conditions for pictures are wanted


class Indexed(Protocol):
    """What torch calls a map-style data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class Samples:
    """A data set around an object with len() and items x or (x, cond), such as a torch.utils.data.Dataset.

    x: a tensor or array of one shape (floats, or uint8 images [C, H, W]), or a Pillow image. cond: an integer is a
    class label; else floats, tensors, or a (nested) dict of them. classes: by default as many as class_names, which
    by default are the object's own attribute `classes`, if that is a list of texts.
    Items are read one after the other; worker processes read them side by side. Raises DataError naming the item.
    """

    def __init__(
        self,
        items: Indexed,
        *,
        classes: int | None = None,
        class_names: Sequence[str] | None = None,
        image: bool | None = None,
    ) -> None:
        self.source, self._items = type(items).__name__, items
        if len(items) < 1:
            raise DataError(f"{self.source}: holds no samples; pass at least one")
        own = getattr(items, "classes", None)
        if class_names is None and isinstance(own, list | tuple) and all(isinstance(name, str) for name in own):
            class_names = own
        self.class_names = None if class_names is None else tuple(class_names)
        self.collate = Collate(self.source, [items[i] for i in range(min(HEAD, len(items)))], image)
        self.shape, self.is_bytes = self.collate.shape, self.collate.is_bytes
        self.classes = classes if classes is not None or class_names is None else len(class_names)

    def __len__(self) -> int:
        return len(self._items)

    def batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Samples float32 [B, *shape] and their conditions."""
        numbers = torch.as_tensor(indices, dtype=torch.int64).tolist()
        return self.collate([self._items[i] for i in numbers], [f"item {i}" for i in numbers])

    def description(self) -> dict[str, Any]:
        """Kind, source, length, shape, classes and a fingerprint of the first 64 samples, ready for JSON."""
        return {
            "kind": "samples",
            "source": self.source,
            "length": len(self),
            "shape": list(self.shape),
            "classes": self.classes,
            "fingerprint": self.collate.fingerprint,
        }


class Collate:
    """Puts samples together, all of the shape and kind of the first ones, which are checked thoroughly."""

    def __init__(self, where: str, head: Sequence[Any], image: bool | None) -> None:
        self.where = where
        first = _x(head[0], where, "the first sample")
        self.shape = tuple(first.shape)
        x = torch.stack([self._checked(_x(item, where, f"sample {n}"), f"sample {n}") for n, item in enumerate(head)])
        self.image = check_shape(x, image, where)
        check_dtype(x, self.image, where)
        if x.is_floating_point():
            check_floats(x, self.image, where)
        self.is_bytes = x.dtype == torch.uint8
        self.head = list(head)
        self.fingerprint = fingerprint.of_rows(x, self(head)[1])

    def __call__(self, items: Sequence[Any], names: Sequence[str] | None = None) -> Batch:
        """A batch; `names` says what the items are called in messages."""
        names = names or [f"sample {n}" for n in range(len(items))]
        rows = [self._checked(_x(item, self.where, name), name) for item, name in zip(items, names, strict=True)]
        x = torch.stack(rows) if rows else torch.empty(0, *self.shape)
        if self.is_bytes != (x.dtype == torch.uint8) and rows:
            raise DataError(f"{self.where}: samples of dtype {x.dtype} among others; give all of them one dtype")
        x = x.float()
        bad = ~x.flatten(1).isfinite().all(1)
        if bad.any():
            raise DataError(f"{self.where}: {names[int(bad.nonzero()[0])]} holds NaN or Inf; mend it or leave it out")
        conds = [_leaves(item[1], self.where) if _is_pair(item) else None for item in items]
        return x.div_(127.5).sub_(1) if self.is_bytes else x, self._stacked(conds)

    def _checked(self, x: Tensor, name: str) -> Tensor:
        if tuple(x.shape) != self.shape:
            raise DataError(
                f"{self.where}: {name} has shape {list(x.shape)}, the first {list(self.shape)}; give all samples one "
                f"shape (crop, resize or pad them)"
            )
        return x

    def _stacked(self, conds: list[Cond]) -> Cond:
        if not conds or all(cond is None for cond in conds):
            return None
        try:
            return map_cond(lambda *leaves: torch.stack(leaves), *conds)
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise DataError(
                f"{self.where}: the conditions of its samples differ in structure or shape ({error}); give each sample "
                f"the same"
            ) from error


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple | list) and len(item) == 2


def _x(item: Any, where: str, name: str) -> Tensor:
    x = item[0] if _is_pair(item) else item
    if isinstance(x, Image.Image):
        pixels = np.asarray(x if x.mode in ("L", "RGB") else x.convert("RGB"))
        x = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if isinstance(x, np.ndarray) and x.dtype.kind in "biuf":
        return torch.from_numpy(np.ascontiguousarray(x))
    if isinstance(x, Tensor):
        return x.detach().cpu()
    raise DataError(
        f"{where}: {name} is {type(x).__name__}, wanted x or a pair (x, cond) with a tensor, an array or a Pillow image"
    )


def _leaves(cond: Any, where: str) -> Cond:
    """A condition of one sample as tensors: integers int64, floats float32 with at least one dimension."""
    if cond is None:
        return None
    if isinstance(cond, dict):
        return {str(key): _leaves(value, where) for key, value in cond.items()}
    try:
        leaf = torch.as_tensor(cond)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{where}: a condition is {type(cond).__name__}, wanted an integer, floats, a tensor or a dict of them"
        ) from error
    if not leaf.is_floating_point():
        return leaf.long()
    return leaf.float() if leaf.ndim else leaf.float()[None]
