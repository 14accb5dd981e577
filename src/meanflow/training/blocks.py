"""The repeated blocks of a network: what activation checkpointing recomputes and FSDP2 shards one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """The members of the outermost module lists of a network, in the order of definition."""
    found: list[nn.Module] = []
    for child in net.children():
        if isinstance(child, nn.ModuleList):
            for member in child:
                found += blocks_of(member) if isinstance(member, nn.ModuleList | nn.ModuleDict) else [member]
        else:
            found += blocks_of(child)
    return found


@contextmanager
def recomputing(net: nn.Module) -> Iterator[None]:
    """Activation checkpointing: inside, each block keeps its input alone and computes the rest again going back.

    Passes without gradients, as that of the derivative, are left as they are. Raises ValueError for a network
    without blocks.
    """
    blocks = blocks_of(net)
    if not blocks:
        raise ValueError(
            f"activation checkpointing recomputes the blocks of a network, but {type(net).__name__} holds no "
            "nn.ModuleList; put its repeated parts into one, or train without checkpointing"
        )
    for block in blocks:
        block.forward = _recomputed(block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the method of the class shows again


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
