"""Samples of which some values do not exist, such as sequences padded to one length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .conditions import MASK, Cond


def mask_of(cond: Cond, x: Tensor) -> Tensor | None:
    """Which values of samples x [B, *shape] exist, as a mask that broadcasts to x; None where all do.

    The condition's entry "mask", bool: of the shape of x, or without its channels ([B, L] for x [B, C, L]).
    Raises ValueError for any other.
    """
    mask = cond.get(MASK) if isinstance(cond, dict) else None
    if mask is None:
        return None
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        if mask.shape == x.shape:
            return mask
        if mask.shape == (x.shape[0], *x.shape[2:]):
            return mask[:, None]
    came = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
    raise ValueError(
        f"the mask of samples {list(x.shape)} must be bool, true where a value exists, of their shape or "
        f"{[x.shape[0], *x.shape[2:]]}; got {came}"
    )


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """x with zeros where the mask is false, whatever stood there."""
    return x if mask is None else x.masked_fill(~mask, 0.0)


def sizes(x: Tensor, mask: Tensor | None) -> int | Tensor:
    """How many values exist in a sample: one number for all, or one a row [B]."""
    return x[0].numel() if mask is None else mask.expand_as(x).flatten(1).sum(1)


def mask_from_lengths(lengths: Sequence[int] | Tensor, longest: int | None = None) -> Tensor:
    """Mask [B, longest] that is true in the first lengths[b] places; longest: by default the largest length."""
    n = torch.as_tensor(lengths, dtype=torch.int64)
    longest = int(n.max()) if longest is None else longest
    if n.ndim != 1 or bool((n < 1).any()) or bool((n > longest).any()):
        raise ValueError(f"lengths must be whole numbers [B] from 1 to {longest}, got {n.tolist()}")
    return torch.arange(longest, device=n.device) < n[:, None]
