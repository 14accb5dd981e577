"""Conditions: None, a tensor [B, ...], or a (nested) dict of them; and the explicit "no condition"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, Union

import torch
from torch import Tensor

from .._hint import did_you_mean

Cond: TypeAlias = Union[Tensor, dict[str, "Cond"], None]
# Entries of a condition that consists of several: a class label, and what an augmentation did to the sample; which of
# its values exist; what was observed of it; and the other end of its path, where data come in pairs (x, e).
LABEL, AUGMENT, MASK, OBSERVATION, NOISE = "label", "augment", "mask", "observation", "noise"
# Those that do not say what a sample shows, and stay where the condition is dropped.
KEPT = (AUGMENT, MASK, OBSERVATION)
Null: TypeAlias = Union[int, float, Tensor, Callable[[Cond], Cond], Mapping[str, "Null"], None]


def map_cond(function: Callable[..., Tensor], *conds: Cond) -> Cond:
    """Apply a function to the tensors that sit at the same place of conditions of one structure."""
    first = conds[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return function(*conds)
    return {key: map_cond(function, *(c[key] for c in conds)) for key in first}  # type: ignore[index]


def augmented(cond: Cond, labels: Tensor) -> Cond:
    """The condition of samples that an augmentation with these labels [B, features] has changed."""
    if cond is None:
        return {AUGMENT: labels}
    return {**cond, AUGMENT: labels} if isinstance(cond, dict) else {LABEL: cond, AUGMENT: labels}


def shown(cond: Cond) -> Cond:
    """What a condition says of what the sample shows: its attributes, or the class label where that is all."""
    if not isinstance(cond, dict):
        return cond
    rest = {key: value for key, value in cond.items() if key not in (*KEPT, NOISE)}
    return rest.get(LABEL) if rest.keys() <= {LABEL} else rest


def without_noise(cond: Cond) -> tuple[Cond, Tensor | None]:
    """A condition without the other end of the path that came with it, and that end."""
    if not isinstance(cond, dict) or NOISE not in cond:
        return cond, None
    noise = cond[NOISE]
    if not isinstance(noise, Tensor):
        raise ValueError(
            f"the entry {NOISE!r} of a condition is the tensor e of a pair (x, e), got {type(noise).__name__}"
        )
    rest: dict[str, Cond] = {key: value for key, value in cond.items() if key != NOISE}
    return (rest[LABEL] if rest.keys() == {LABEL} else rest or None), noise


def class_number(
    label: int | str, classes: int | None, names: Sequence[str] | None = None, title: str = "class"
) -> int:
    """The number of a class given by number or by name; a name goes before a number that looks like it.

    classes: how many there are, None where nobody knows. title: what is chosen, for messages.
    Raises ValueError with what there is.
    """
    names = list(names or ())
    if label in names:
        return names.index(str(label))
    # isdecimal alone takes digits of all scripts
    number = int(label) if isinstance(label, int) or (label.isascii() and label.isdecimal()) else -1
    if number >= 0 and (classes is None or number < classes):
        return number
    known = ", ".join(names[:50]) or ("whole numbers" if classes is None else f"the numbers 0 to {classes - 1}")
    hint = did_you_mean(label, names) if isinstance(label, str) else ""
    raise ValueError(f"there is no {title} {label!r}{hint}; there are {known}")


def take(cond: Cond, rows: slice | Tensor) -> Cond:
    """Rows of a condition: a slice or an index tensor along the batch."""
    return map_cond(lambda c: c[rows], cond)


def where(mask: Tensor, yes: Cond, no: Cond) -> Cond:
    """Row by row, `yes` where the mask [B] is true, else `no`."""

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return map_cond(choose, yes, no)


def null_like(cond: Cond, null: Null) -> Cond:
    """The condition that means "none", with the structure and batch of `cond`.

    `null` is a number (an extra class index), a tensor (one row, or a whole batch), a callable of the
    condition, or a dict with one of these per key. An augmentation label, a mask and an observation are kept, unless
    null has an entry for them; a null that is no dict is that of the class label.
    Raises ValueError when it is missing or does not fit.
    """
    if cond is None:
        return None
    if callable(null) and not isinstance(null, Tensor):
        return null(cond)
    if isinstance(cond, Tensor):
        return _null_tensor(cond, null)
    kept = {key: cond[key] for key in KEPT if key in cond and not (isinstance(null, Mapping) and key in null)}
    rest = {key: value for key, value in cond.items() if key not in kept}
    if not isinstance(null, Mapping):
        if rest.keys() - {LABEL}:
            raise ValueError(
                f"the condition is a dict with keys {sorted(cond)}, so null must be a dict with the same keys "
                f"or a callable, got {type(null).__name__}"
            )
        null = dict.fromkeys(rest, null)
    missing = sorted(set(rest) - set(null))
    if missing:
        raise ValueError(f"null has no entry for the condition keys {missing}; add one for each")
    return {**{key: null_like(value, null[key]) for key, value in rest.items()}, **kept}


def _null_tensor(cond: Tensor, null: Null) -> Tensor:
    if null is None:
        raise ValueError(
            "dropping conditions needs to know what 'no condition' is: pass null=, for class labels the index "
            "after the last class, for other conditions a tensor or a callable"
        )
    if isinstance(null, (int, float)):
        return torch.full_like(cond, null)  # made where it is needed: a number copied to a GPU is waited for
    value = torch.as_tensor(null, dtype=cond.dtype, device=cond.device)
    try:
        return value.expand_as(cond).clone()
    except RuntimeError as error:
        raise ValueError(
            f"null of shape {list(value.shape)} does not fit conditions of shape {list(cond.shape)}; "
            f"give it the shape of one row, {list(cond.shape[1:])}"
        ) from error
