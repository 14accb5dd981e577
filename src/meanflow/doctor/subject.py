"""The network under examination, with the few rows that every check uses."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.conditions import Cond, map_cond, take
from ..core.path import check_samples
from ..objectives.check import Filled
from ..own import told

ROWS = 4


@dataclass
class Subject:
    """A copy of the network, so that nothing here changes the user's; inputs of four rows; what is known so far.

    x, z, v [4, *shape]; t, r [4] with r < t; has_data: whether x is the user's; gaussian: (m, s) of the training data.
    """

    net: nn.Module
    x: Tensor
    cond: Cond
    z: Tensor
    v: Tensor
    t: Tensor
    r: Tensor
    has_data: bool
    gaussian: tuple[float, float] | None
    compile: bool
    # Whether calls and exact derivatives work; later checks depend on it.
    runs: bool = False
    forward_mode: bool = False

    def rows(self, n: int) -> tuple[Tensor, Cond]:
        """n rows of data and conditions, the four over and over."""
        index = torch.arange(n, device=self.x.device) % len(self.x)
        return self.x[index], take(self.cond, index)


def admit(
    net: nn.Module, x: Tensor | None, cond: Cond, gaussian: tuple[float, float] | None, compile: bool | None
) -> Subject:
    """Copy the network and take four rows; raises ValueError for what cannot be examined."""
    if not isinstance(net, nn.Module):
        raise ValueError(f"doctor examines an nn.Module, got {type(net).__name__}; wrap a function in a module")
    net = getattr(net, "_orig_mod", net)  # what torch.compile wraps
    _check_gaussian(gaussian)
    has_data = x is not None
    if x is None:
        x, cond = _made_up(net, cond)
    check_samples(x)
    _check_rows(x, cond)
    index = torch.arange(ROWS, device=x.device) % len(x)
    x, cond = x[index].detach(), take(cond, index)
    parameters = sum(p.numel() for p in net.parameters())
    return Subject(
        net=_copied(net),
        x=x,
        cond=cond,
        z=torch.randn_like(x),
        v=torch.randn_like(x),
        t=torch.linspace(0.5, 0.95, ROWS, device=x.device).to(x.dtype),
        r=torch.linspace(0.35, 0.1, ROWS, device=x.device).to(x.dtype),
        has_data=has_data,
        gaussian=gaussian,
        compile=parameters < 2_000_000 if compile is None else compile,
    )


def filled(net: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy with noise in the all-zero parameters, which would hide what lies before them."""
    twin = copy.deepcopy(net)
    twin.load_state_dict(Filled(twin).fill, strict=False)
    return twin if dtype is None else twin.to(dtype)


def _copied(net: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(net)
    except Exception as error:
        raise ValueError(
            f"doctor works on a copy of the network, but copy.deepcopy fails: {told(error)}; keep tensors that are "
            "computed from parameters out of the module's attributes"
        ) from error


def _made_up(net: nn.Module, cond: Cond) -> tuple[Tensor, Cond]:
    """Normal data of the network's shape, and labels where it has classes."""
    shape: Any = getattr(net, "shape", None)
    if not isinstance(shape, tuple | list) or not all(isinstance(n, int) for n in shape):
        raise ValueError(
            f"{type(net).__name__} does not say the shape of a sample: pass x (a factory returns net, x or "
            "net, x, cond), or give the network an attribute shape, e.g. (3, 32, 32)"
        )
    first = next((p for p in net.parameters() if p.is_floating_point()), torch.zeros(()))
    sizes = _sizes(cond)
    x = torch.randn(sizes[0] if sizes else ROWS, *shape).to(first.device, first.dtype)
    null = getattr(net, "null", None)
    if cond is None and isinstance(null, int) and null > 0:
        cond = torch.arange(ROWS, device=x.device) % null
    return x, cond


def _check_gaussian(gaussian: tuple[float, float] | None) -> None:
    if gaussian is not None and not (len(gaussian) == 2 and gaussian[1] > 0):
        raise ValueError(f"gaussian must be (mean, standard deviation > 0), got {gaussian}")


def _check_rows(x: Tensor, cond: Cond) -> None:
    wrong = [n for n in _sizes(cond) if n != len(x)]
    if wrong:
        raise ValueError(f"cond must have one row for each of the {len(x)} rows of x, got {wrong[0]}")


def _sizes(cond: Cond) -> list[int]:
    sizes: list[int] = []

    def look(tensor: Tensor) -> Tensor:
        sizes.append(len(tensor))
        return tensor

    map_cond(look, cond)
    return sizes
