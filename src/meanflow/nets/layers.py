"""Layers that the networks share; all of them have forward-mode derivatives."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Conditioning = Literal["t,r", "t,t-r", "t,r,t-r", "t-r"]
CONDITIONINGS: tuple[str, ...] = get_args(Conditioning)


class TimeEmbedding(nn.Module):
    """Embed times [B] in [0, 1] as [B, width]: cosines and sines of 256 / 2 frequencies, then two layers.

    Times are not multiplied by 1000: the derivative of the embedding would grow by the same factor.
    """

    frequencies: Tensor

    def __init__(self, width: int, features: int = 256, max_period: float = 10_000.0) -> None:
        super().__init__()
        half = features // 2
        frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float64) / half)
        self.register_buffer("frequencies", frequencies.float(), persistent=False)
        self.hidden = nn.Linear(features, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """[B] -> [B, width], computed in float32 or better whatever the autocast around it."""
        with torch.autocast(t.device.type, enabled=False):
            angle = t[:, None] * self.frequencies.to(t.dtype)  # [B, features / 2]
            wave = torch.cat([angle.cos(), angle.sin()], dim=1)  # [B, features]
            return self.out(F.silu(self.hidden(wave.to(self.hidden.weight.dtype))))


class IntervalEmbedding(nn.Module):
    """Embed an interval [r, t] as [B, width]: the sum of one embedding per time that `conditioning` names.

    Source of the four choices: arXiv:2505.13447, table 1c.
    """

    def __init__(self, width: int, conditioning: Conditioning = "t,t-r") -> None:
        super().__init__()
        if conditioning not in CONDITIONINGS:
            raise ValueError(f"conditioning must be one of {CONDITIONINGS}, got {conditioning!r}")
        self.names = conditioning.split(",")
        self.embeddings = nn.ModuleList(TimeEmbedding(width) for _ in self.names)

    def forward(self, t: Tensor, r: Tensor) -> Tensor:
        """t, r [B] -> [B, width]."""
        times = {"t": t, "r": r, "t-r": t - r}
        return torch.stack([e(times[n]) for n, e in zip(self.names, self.embeddings, strict=True)]).sum(0)


class ConditionEmbedding(nn.Module):
    """Embed a condition as [B, width]: class labels through a table with one more row for "no class",
    vectors [B, features] through a linear layer."""

    def __init__(self, width: int, classes: int | None, features: int | None) -> None:
        super().__init__()
        if classes is not None and features is not None:
            raise ValueError("a network takes class labels or a vector as condition, not both")
        if classes is not None and classes < 1:
            raise ValueError(f"classes must be at least 1 (None for no classes), got {classes}")
        self.classes, self.features = classes, features
        self.table = nn.Embedding(classes + 1, width) if classes is not None else None
        self.linear = nn.Linear(features, width) if features is not None else None

    def forward(self, cond: object, like: Tensor) -> Tensor | float:
        """cond -> [B, width], or 0 for a network without condition; raises ValueError for what does not fit."""
        if self.table is None and self.linear is None:
            if cond is not None:
                raise ValueError("this network was built without condition: pass cond=None, or build it with classes=")
            return 0.0
        wanted = "class labels" if self.table is not None else f"vectors [B, {self.features}]"
        if not isinstance(cond, Tensor):
            raise ValueError(
                f"this network needs {wanted} as cond, got {type(cond).__name__}; for no condition pass "
                "its `null` in every row"
            )
        if self.table is not None:
            if cond.is_floating_point() or cond.shape != like.shape[:1]:
                raise ValueError(f"class labels must be integers [{len(like)}], got {cond.dtype} {list(cond.shape)}")
            return self.table(cond)
        assert self.linear is not None
        return self.linear(cond.to(self.linear.weight.dtype))


class Attention(nn.Module):
    """Multi-head self-attention over tokens [B, N, width].

    Raises ValueError when the heads do not divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            options = [h for h in range(1, width + 1) if width % h == 0 and h <= 2 * max(heads, 1)]
            raise ValueError(f"heads must divide the width {width}, got {heads}; possible: {options}")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width] -> [B, N, width]."""
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)  # [B, H, N, D]
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(b, n, d))


def normalize(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Layer norm over the last dimension without learned scale; eps as in the authors' code."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift, with shift and scale [B, width] the same for all tokens of [B, N, width]."""
    return x * (1 + scale[:, None]) + shift[:, None]


def sincos_positions(width: int, height: int, breadth: int) -> Tensor:
    """Fixed positions [height * breadth, width] of a grid: one half of the width encodes each axis."""
    if width % 4:
        raise ValueError(f"the width must be divisible by 4 for two-dimensional positions, got {width}")
    omega = 1.0 / 10_000.0 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(breadth), indexing="ij")
    angles = [axis.reshape(-1, 1).double() * omega for axis in (columns, rows)]
    return torch.cat([wave for a in angles for wave in (a.sin(), a.cos())], dim=1).float()


def patchify(z: Tensor, patch: int) -> Tensor:
    """Images [B, C, H, W] to tokens [B, N, patch * patch * C], contiguous."""
    b, c, h, w = z.shape
    z = z.reshape(b, c, h // patch, patch, w // patch, patch)
    return z.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c)


def unpatchify(tokens: Tensor, patch: int, shape: tuple[int, ...]) -> Tensor:
    """Tokens [B, N, patch * patch * C] to images [B, C, H, W]: the inverse of patchify."""
    c, h, w = shape
    x = tokens.reshape(-1, h // patch, w // patch, patch, patch, c)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, c, h, w)
