"""Networks with the call net(z, t=t, r=r, cond=cond) -> u."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .dit import PATCHES, SIZES, DiT
from .mlp import MLP
from .sequence import SequenceDiT
from .unet import UNet

NETS: dict[str, type[nn.Module]] = {"DiT": DiT, "MLP": MLP, "SequenceDiT": SequenceDiT, "UNet": UNet}


def build(kind: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network of a recorded type with its recorded constructor arguments."""
    if kind not in NETS:
        raise ValueError(f"unknown network {kind!r}; known: {', '.join(NETS)}. Pass your own with net=")
    return NETS[kind](**{**arguments, "shape": tuple(arguments["shape"])})


__all__ = ["MLP", "NETS", "PATCHES", "SIZES", "DiT", "SequenceDiT", "UNet", "build"]
