"""What every objective shares: its result, the checks at its border, and the network's "no condition"."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.conditions import Cond, Null, null_like, where
from ..core.path import check_samples, check_times
from ..core.weighting import AdaptiveWeight


class Output(NamedTuple):
    """Loss (scalar with graph), raw parts (scalars) to log beside it, and raw squared errors per row [B]."""

    loss: Tensor
    parts: dict[str, Tensor]
    rows: dict[str, Tensor]


class Objective(nn.Module):
    """A network with what is minimised over it; wrap this, never the network, in DDP or FSDP."""

    weighting: AdaptiveWeight
    field: str  # "average" when sampling may jump over intervals, "instantaneous" when only Euler steps are right

    def __init__(self, net: nn.Module, null: Null = None) -> None:
        super().__init__()
        self.net = net
        self.null: Any = getattr(net, "null", None) if null is None else null

    def arguments(self) -> dict[str, Any]:
        """Constructor arguments besides the network, JSON-able."""
        raise NotImplementedError

    def drop(self, cond: Cond, dropped: Tensor | None) -> Cond:
        """The condition with "none" in the dropped rows [B]."""
        if cond is None or dropped is None:
            return cond
        return where(dropped, null_like(cond, self.null), cond)


def check_batch(x: Tensor, noise: Tensor, t: Tensor, r: Tensor) -> None:
    """Raise ValueError unless samples, noise and times fit together."""
    check_samples(x)
    if noise.shape != x.shape:
        raise ValueError(f"noise must have the shape of x, {list(x.shape)}, got {list(noise.shape)}")
    check_times(x, t, r)


def plain(value: Any) -> Any:
    """A setting as JSON-able data; dataclasses carry their type's name."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **{k: plain(getattr(value, k)) for k in asdict(value)}}
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return getattr(value, "__qualname__", value) if callable(value) else value


def mean(values: Tensor) -> Tensor:
    """Mean as float32 scalar without graph."""
    return values.detach().to(torch.float32).mean()
