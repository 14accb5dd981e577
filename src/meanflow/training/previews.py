"""Samples made drawable while training."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from ..data import DataError, Dataset
from ..evaluation.pictures import drawable


def decoder(data: Dataset, device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """What makes samples drawable: nothing for images and points, the VAE for latents; None where there is no way."""
    contract = getattr(data, "latents", None)
    if contract is None:
        return (lambda x: x) if drawable(data.shape) else None
    try:
        # A run must not wait for a network because of its pictures.
        vae = contract.load_vae(device=device, download=False)
    except DataError as error:
        print(f"note: no sample grids while training: {error}", file=sys.stderr)
        return None
    return lambda x: contract.decode(x, vae)
