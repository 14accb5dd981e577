"""Tiny autoencoders in the layout of TAESD: two state dicts whose numbered layers tell the architecture.

Layout: github.com/madebyollin/taesd (MIT): convolutions 3x3 and residual blocks in one row, three times down (a
convolution of stride 2) or up (nearest neighbour, then a convolution), for images in [0, 1]. Convolutions that change
the resolution are the ones without bias. In the variant for FLUX.2 (TAEF2) the blocks at the lowest resolution have a
branch with group norm, which the AutoencoderTiny of diffusers cannot express.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]
BOUND = 3.0  # latents enter the decoder as 3 tanh(z / 3), as in training
GROUPS = 4  # of the group norm in a block's branch


class Squash(nn.Module):
    """Latents of any size, softly bounded."""

    def forward(self, z: Tensor) -> Tensor:
        return BOUND * torch.tanh(z / BOUND)


class Block(nn.Module):
    """Three convolutions beside a shortcut, with or without the branch of 1x1 convolutions and group norm before."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        wide, narrow = weights["conv.0.weight"].shape[:2]
        self.conv = nn.Sequential(
            conv(narrow, wide), nn.ReLU(), conv(wide, wide), nn.ReLU(), conv(wide, wide)
        )  # fmt: skip
        self.skip = nn.Conv2d(narrow, wide, 1, bias=False) if "skip.weight" in weights else nn.Identity()
        self.pool = _branch(weights["pool.0.weight"]) if "pool.0.weight" in weights else None

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + self.skip(x))


class TinyAutoencoder(nn.Module):
    """Encoder and decoder between images [B, 3, H, W] in [0, 1] and latents [B, C, H / 8, W / 8].

    Raises ValueError for weights in another layout.
    """

    def __init__(self, encoder: Weights, decoder: Weights) -> None:
        super().__init__()
        self.encoder, self.decoder = _row(encoder, decoding=False), _row(decoder, decoding=True)


def conv(narrow: int, wide: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(narrow, wide, 3, stride=stride, padding=1, bias=bias)


def _branch(first: Tensor) -> nn.Sequential:
    wide, narrow = first.shape[:2]
    return nn.Sequential(
        nn.Conv2d(narrow, wide, 1, bias=False), nn.GroupNorm(GROUPS, wide), nn.ReLU(),
        nn.Conv2d(wide, narrow, 1, bias=False),
    )  # fmt: skip


def _row(weights: Weights, *, decoding: bool) -> nn.Sequential:
    """The layers in turn, with their weights."""
    numbered: dict[int, Weights] = defaultdict(dict)
    for name, value in weights.items():
        number, _, rest = name.partition(".")
        if not number.isdigit() or not rest:
            raise ValueError(f"{name} is no weight of a numbered layer")
        numbered[int(number)][rest] = value
    if not numbered:
        raise ValueError("it holds no weights")
    row = nn.Sequential(*(_layer(n, numbered.get(n), decoding) for n in range(max(numbered) + 1)))
    try:
        row.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return row


def _layer(number: int, weights: Weights | None, decoding: bool) -> nn.Module:
    """One layer; those without weights are known by their place in a decoder."""
    if weights is None:
        if not decoding:
            raise ValueError(f"layer {number} of the encoder has no weights, so it is of another architecture")
        return {0: Squash, 2: nn.ReLU}.get(number, lambda: nn.Upsample(scale_factor=2))()
    if "conv.0.weight" in weights:
        return Block(weights)
    if "weight" not in weights:
        raise ValueError(f"layer {number} has {', '.join(weights)}, and neither weight nor conv.0.weight")
    wide, narrow = weights["weight"].shape[:2]
    bias = "bias" in weights
    return conv(narrow, wide, stride=1 if bias or decoding else 2, bias=bias)
