"""Sequences of different lengths: padded with zeros to the longest one, with a mask of what exists."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.conditions import LABEL, MASK, Cond
from ..core.conditions import take as take_rows
from ..core.masks import mask_from_lengths
from . import fingerprint
from .conditions import check_classes, check_cond, is_labels
from .errors import DataError
from .files import whole_file
from .rows import as_rows
from .values import check_floats

VALUES, LENGTHS = "sequences", "lengths"  # keys of the .npz
COND = ("labels", "cond")


class Sequences:
    """A data set of sequences [C, L_i], or [L_i] for one channel, given as a list, or behind one another.

    items: a list of tensors or arrays; or one [total, C], a row a step in time, with `lengths` [N]. cond: as in Tensors
    without a dict around labels or vectors; a batch has the conditions {"mask": [B, L], ...} with L the longest length
    (or `longest`), labels under "label", vectors under "vector".
    Raises DataError naming the sequence that does not fit.
    """

    def __init__(
        self,
        items: Sequence[Any] | Tensor | np.ndarray[Any, Any],
        cond: object = None,
        *,
        lengths: object = None,
        longest: int | None = None,
        classes: int | None = None,
        class_names: Sequence[str] | None = None,
        source: str = "sequences",
    ) -> None:
        self.source = source
        self._values, self.lengths = _joined(items, source) if lengths is None else _given(items, lengths, source)
        check_floats(self._values, False, source)
        self._starts = self.lengths.cumsum(0) - self.lengths
        most = int(self.lengths.max())
        if longest is not None and longest < most:
            raise DataError(f"{source}: longest={longest}, but there is a sequence of {most} steps; cut it beforehand")
        self.shape: tuple[int, ...] = (self._values.shape[1], longest or most)
        self.class_names = tuple(class_names) if class_names is not None else None
        checked = check_cond(cond, len(self.lengths), source)
        self.classes = check_classes(checked, classes, self.class_names, source)
        if isinstance(checked, Tensor):
            checked = {LABEL if is_labels(checked) else "vector": checked}
        self._cond: dict[str, Cond] = checked or {}

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def conditions(self) -> Cond:
        """Those of all samples."""
        return {**self._cond, MASK: mask_from_lengths(self.lengths, self.shape[1])}

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Cond]:
        """Sequences float32 [B, C, L], zero where the mask [B, L] is false, and their conditions."""
        index = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        x = torch.zeros(len(index), *self.shape)
        for row, i in enumerate(index.tolist()):
            start, length = int(self._starts[i]), int(self.lengths[i])
            x[row, :, :length] = self._values[start : start + length].T
        cond = take_rows(self._cond, index)
        assert isinstance(cond, dict)
        return x, {**cond, MASK: mask_from_lengths(self.lengths[index], self.shape[1])}

    def description(self) -> dict[str, Any]:
        """Kind, source, length, shape, classes, lengths and fingerprint, ready for JSON."""
        return {
            "kind": "sequences",
            "source": self.source,
            "length": len(self),
            "shape": list(self.shape),
            "classes": self.classes,
            "lengths": [int(self.lengths.min()), int(self.lengths.max())],
            "fingerprint": self._fingerprint,
        }

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint.of_rows(self._values, {**self._cond, LENGTHS: self.lengths})


def save_sequences(path: str | Path, items: Sequence[Any], labels: object = None, *, source: str = "sequences") -> Path:
    """Write sequences [C, L_i] as an .npz that `open_data` reads: plain numbers, no Python objects.

    Keys: "sequences" [total, C], "lengths" [N] and, if there are any, "labels" [N].
    """
    values, lengths = _joined(items, source)
    arrays = {VALUES: values.numpy(), LENGTHS: lengths.numpy()}
    if labels is not None:
        arrays["labels"] = np.asarray(labels)
    path = Path(path)
    with whole_file(path) as aside, open(aside, "wb") as file:  # given a name, numpy may add .npz to it
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return path


def has_lengths(path: Path) -> bool:
    """Whether a .npz holds sequences of different lengths."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {VALUES, LENGTHS} <= set(stored.keys())
    except Exception:  # whatever it is then, its own reader says
        return False


def read_sequences(path: Path, *, cond: str | None = None) -> Sequences:
    """The sequences of a .npz as save_sequences writes it; cond="none" leaves the labels out."""
    if cond not in (None, "none", "label"):
        raise DataError(f"{path}: there is no column {cond!r} for a condition, only labels; leave it out, or say none")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored}
    except Exception as error:  # numpy, zipfile and zlib raise what they like
        raise DataError(f"{path}: cannot be read as plain numpy arrays ({error}); write it again") from error
    unknown = sorted(arrays.keys() - {VALUES, LENGTHS, *COND})
    if unknown or len(arrays.keys() & {*COND}) > 1:
        raise DataError(
            f"{path}: found the keys {', '.join(arrays)}; wanted {VALUES}, {LENGTHS} and at most one of "
            f"{', '.join(COND)}"
        )
    labels = None if cond == "none" else next((arrays[key] for key in COND if key in arrays), None)
    return Sequences(arrays[VALUES], labels, lengths=arrays[LENGTHS], source=str(path))


def _joined(items: Any, where: str) -> tuple[Tensor, Tensor]:
    """A list of sequences as one tensor [total, C] with their lengths [N]."""
    if not isinstance(items, list | tuple) or not items:
        raise DataError(f"{where}: wanted a list of sequences [C, L], got {type(items).__name__}; or pass lengths=")
    rows = [_one(item, f"{where}: sequence {n}") for n, item in enumerate(items)]
    for n, row in enumerate(rows):
        if row.shape[1] != rows[0].shape[1]:
            raise DataError(
                f"{where}: sequence {n} has {row.shape[1]} channels, the first {rows[0].shape[1]}; sequences are "
                "[C, L], or [L] for one channel"
            )
    return torch.cat(rows), torch.tensor([len(row) for row in rows])


def _one(item: Any, where: str) -> Tensor:
    x = torch.as_tensor(as_rows(item, where))
    if x.ndim not in (1, 2) or x.shape[-1] < 1 or not x.is_floating_point():
        raise DataError(f"{where} must be floats [C, L] or [L] with L >= 1, got {x.dtype} {list(x.shape)}")
    return (x[None] if x.ndim == 1 else x).float().T.contiguous()


def _given(items: Any, lengths: object, where: str) -> tuple[Tensor, Tensor]:
    values = torch.as_tensor(as_rows(items, f"{where}: the sequences"))
    values = values[:, None] if values.ndim == 1 else values
    n = torch.as_tensor(as_rows(lengths, f"{where}: lengths"))
    if values.ndim != 2 or not values.is_floating_point() or n.ndim != 1 or n.is_floating_point() or not len(n):
        raise DataError(
            f"{where}: wanted floats [total, C] and whole lengths [N], got {values.dtype} {list(values.shape)} and "
            f"{n.dtype} {list(n.shape)}"
        )
    n = n.long()
    if int(n.min()) < 1 or int(n.sum()) != len(values):
        raise DataError(
            f"{where}: the lengths must be at least 1 and add up to the {len(values)} steps that there are; they are "
            f"{int(n.min())} or more and add up to {int(n.sum())}"
        )
    return values.float(), n
