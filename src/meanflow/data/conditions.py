"""Checks on conditions: class labels [N], vectors [N, D, ...] or nested dicts of tensors of length N."""

from typing import TypeGuard

import torch
from torch import Tensor

from ..core.conditions import Cond
from .errors import DataError
from .rows import as_rows, to_tensor


def check_cond(cond: object, length: int, where: str) -> Cond:
    """The condition, labels as int64 and floats as float32; DataError unless it fits `length` samples."""
    if cond is None:
        return None
    if isinstance(cond, dict):
        return _check_tree(cond, length, f"{where}: cond")
    leaf = _check_leaf(cond, length, f"{where}: cond")
    return _check_labels(leaf, where) if leaf.ndim == 1 else _check_vectors(leaf, where)


def check_classes(cond: Cond, classes: int | None, names: tuple[str, ...] | None, where: str) -> int | None:
    """The number of classes: as given, else as many as there are names, else the largest label plus one."""
    if not is_labels(cond):
        if classes is not None or names is not None:
            raise DataError(
                f"{where}: classes={classes} and class_names={names} need class labels; pass "
                f"cond=labels, integers of shape [N]"
            )
        return None
    if classes is None:
        classes = len(names) if names is not None else int(cond.max()) + 1
    if names is not None and len(names) != classes:
        raise DataError(f"{where}: {len(names)} class_names for {classes} classes; pass one name a class")
    if int(cond.max()) >= classes:
        row = int(cond.argmax())
        raise DataError(
            f"{where}: label {int(cond[row])} in row {row}, but there are {classes} classes, so "
            f"labels are 0 to {classes - 1}; pass classes={int(cond.max()) + 1} or correct the "
            f"labels"
        )
    return classes


def is_labels(cond: Cond) -> TypeGuard[Tensor]:
    """Whether the condition is one class label a sample."""
    return isinstance(cond, Tensor) and cond.ndim == 1


def _check_tree(tree: dict[object, object], length: int, path: str) -> dict[str, Cond]:
    if not tree:
        raise DataError(f"{path} is an empty dict; pass cond=None for data without conditions")
    checked: dict[str, Cond] = {}
    for key, value in tree.items():
        if not isinstance(key, str):
            raise DataError(f"{path} has the key {key!r}; keys must be strings, e.g. {str(key)!r}")
        inner = f"{path}[{key!r}]"
        checked[key] = (
            _check_tree(value, length, inner) if isinstance(value, dict) else _check_leaf(value, length, inner)
        )
    return checked


def _check_leaf(value: object, length: int, path: str) -> Tensor:
    rows = as_rows(value, path)
    leaf = rows if isinstance(rows, Tensor) else to_tensor(rows, path)
    if leaf.ndim == 0 or len(leaf) != length:
        raise DataError(f"{path} has shape {list(leaf.shape)}, but there are {length} samples; pass one row a sample")
    if leaf.is_complex():
        raise DataError(f"{path} is complex; pass its real and imaginary parts as floats")
    if not leaf.is_floating_point():
        return leaf if leaf.dtype == torch.bool else leaf.long()
    bad = ~leaf.float().isfinite()
    if bad.any():
        row = int(bad.flatten(1).any(1).nonzero()[0]) if leaf.ndim > 1 else int(bad.nonzero()[0])
        raise DataError(
            f"{path}: {int(bad.sum())} of {leaf.numel()} values are NaN or Inf, first in row "
            f"{row}; remove or replace them"
        )
    return leaf.float()


def _check_labels(labels: Tensor, where: str) -> Tensor:
    if labels.dtype != torch.int64:
        raise DataError(
            f"{where}: cond of shape {list(labels.shape)} means class labels, which must be "
            f"integers, got {labels.dtype}; pass cond.long() for labels or cond[:, None] for a "
            f"number as condition"
        )
    if int(labels.min()) < 0:
        row = int(labels.argmin())
        raise DataError(
            f"{where}: label {int(labels[row])} in row {row}; labels must be 0 or more, so "
            f"renumber them from 0 or leave the unlabelled samples out"
        )
    return labels


def _check_vectors(vectors: Tensor, where: str) -> Tensor:
    if not vectors.is_floating_point():
        raise DataError(
            f"{where}: integer cond of shape {list(vectors.shape)}; class labels must have shape "
            f"[{len(vectors)}] (e.g. cond.squeeze(1)), conditions that are no class index must "
            f"be floats (cond.float()), token numbers go into a dict"
        )
    return vectors
