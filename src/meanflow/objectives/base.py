"""What every objective shares: its result, the checks at its border, and the network's "no condition"."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..core.compiled import Compiled, prepare
from ..core.conditions import Cond, Null, null_like, where, without_noise
from ..core.derivative import Autocast
from ..core.path import check_samples, check_times
from ..core.source import RowSource, Source, drawn
from ..core.weighting import AdaptiveWeight


class Output(NamedTuple):
    """Loss (scalar with graph), raw parts (scalars) to log beside it, and raw squared errors per row [B]."""

    loss: Tensor
    parts: dict[str, Tensor]
    rows: dict[str, Tensor]


class Step(NamedTuple):
    """What the inner loss returns: the output, and u and du/dt without graph, for comparison."""

    output: Output
    u: Tensor
    dudt: Tensor | None


Precision = Literal["fp32", "bf16"]


def check_precision(precision: str) -> None:
    """Raise ValueError for a precision that training cannot be done in."""
    if precision in ("fp16", "float16", "half"):
        raise ValueError(
            "fp16 is not supported for MeanFlow training: users of other codes report NaN after 100,000 steps and "
            "more (Gsunshine/meanflow#4, haidog-yaqub/MeanFlow#17). Use bf16 or fp32"
        )
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision must be fp32 or bf16, got {precision!r}")


class Objective(nn.Module):
    """A network with what is minimised over it; wrap this, never the network, in DDP or FSDP."""

    weighting: AdaptiveWeight
    field: str  # "average" when sampling may jump over intervals, "instantaneous" when only Euler steps are right

    def __init__(
        self, net: nn.Module, null: Null = None, precision: Precision = "fp32", source: Source | None = None
    ) -> None:
        super().__init__()
        check_precision(precision)
        if source is not None and not callable(source):
            raise ValueError(f"source must be called as source(x, cond, generator), got {type(source).__name__}")
        self.source = source
        self.net, self.precision = net, precision
        self._autocast = Autocast(net)
        self._compiled: Compiled | None = None
        self.null: Any = getattr(net, "null", None) if null is None else null

    def called(self, precision: Precision | None = None) -> Any:
        """What is called in the objective's or another precision: the network, or the network under autocast."""
        return self._autocast if (precision or self.precision) == "bf16" else self.net

    def arguments(self) -> dict[str, Any]:
        """Constructor arguments besides the network, JSON-able."""
        raise NotImplementedError

    def _loss(self, *args: Any) -> Step:
        """Loss, u and du/dt of one batch; everything random is given."""
        raise NotImplementedError

    def compile(self, *_: Any, **__: Any) -> None:
        """Compile the loss with torch.compile: full graph, static shapes.

        The first step is compared with eager: u, du/dt and gradients. Where they differ by more than 1e-3, or the
        network does not compile, a warning says so and everything goes on in eager.
        """
        prepare(self.net)
        self._compiled = Compiled(self._loss, self.net, 1e-3 if self.precision == "fp32" else 5e-2)

    def _run(self, *args: Any) -> Output:
        return (self._compiled or self._loss)(*args).output

    def noise(self, x: Tensor, cond: Cond, generator: torch.Generator | None) -> tuple[Tensor, Cond]:
        """The other end of the path for x: what the data give as its pair, else the source; and the rest of cond."""
        cond, noise = without_noise(cond)
        if noise is None:
            return drawn(self.source, x, cond, generator), cond
        if noise.shape != x.shape:
            raise ValueError(f"data in pairs (x, e) need e of the shape of x, {list(x.shape)}, got {list(noise.shape)}")
        return noise.to(x.dtype), cond

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
    if isinstance(value, RowSource):
        return value.record()
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return getattr(value, "__qualname__", type(value).__qualname__) if callable(value) else value


def mean(values: Tensor) -> Tensor:
    """Mean as float32 scalar without graph."""
    return values.detach().to(torch.float32).mean()
