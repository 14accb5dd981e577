"""Layers that the networks share; all of them have forward-mode derivatives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.conditions import OBSERVATION, Cond, shown

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
    """Embed what a condition shows as [B, width]: class labels through a table with one more row for "no class",
    vectors [B, features] through a linear layer, several attributes as the sum of one embedding each.

    attributes: by name {"classes": n} for whole numbers [B], {"features": n} for numbers [B] or [B, n], with "mean" and
    "std" [n] where these are to be brought to mean 0 and deviation 1 first.
    """

    def __init__(
        self,
        width: int,
        classes: int | None,
        features: int | None,
        attributes: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        if sum(given is not None for given in (classes, features, attributes)) > 1:
            raise ValueError("a network takes one of classes, condition_features and attributes, not several")
        if classes is not None and classes < 1:
            raise ValueError(f"classes must be at least 1 (None for no classes), got {classes}")
        self.classes, self.features = classes, features
        self.table = nn.Embedding(classes + 1, width) if classes is not None else None
        self.linear = nn.Linear(features, width) if features is not None else None
        self.names = None if attributes is None else sorted(attributes)
        self.attributes = nn.ModuleList(_attribute(width, name, (attributes or {})[name]) for name in self.names or ())

    @property
    def null(self) -> Any:
        """The condition that means "none"."""
        if self.names is not None:
            return {name: one.null for name, one in zip(self.names, self.attributes, strict=True)}
        return self.classes if self.features is None else torch.zeros(self.features)

    def forward(self, cond: Cond, like: Tensor) -> Tensor | float:
        """cond -> [B, width], or 0 for a network without condition; raises ValueError for what does not fit."""
        cond = shown(cond)
        if self.names is not None:
            return self._sum(cond, like)
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

    def _sum(self, cond: Cond, like: Tensor) -> Tensor:
        assert self.names is not None
        given = cond if isinstance(cond, dict) else {}
        if given.keys() != set(self.names):
            came = ", ".join(sorted(given)) or type(cond).__name__
            raise ValueError(f"this network needs a dict with {', '.join(self.names)} as cond, got {came}")
        parts = [one(given[name], like) for name, one in zip(self.names, self.attributes, strict=True)]
        return torch.stack(parts).sum(0)


def _attribute(width: int, name: str, about: Mapping[str, Any]) -> nn.Module:
    if "classes" in about:
        return ChoiceEmbedding(width, name, int(about["classes"]))
    if "features" in about:
        return NumbersEmbedding(width, name, int(about["features"]), about.get("mean"), about.get("std"))
    raise ValueError(f'the attribute {name!r} must be {{"classes": n}} or {{"features": n}}, got {dict(about)}')


class ChoiceEmbedding(nn.Module):
    """An attribute of n values, whole numbers [B]; n itself is "unknown"."""

    def __init__(self, width: int, name: str, classes: int) -> None:
        super().__init__()
        self.name, self.null = name, classes
        self.table = nn.Embedding(classes + 1, width)

    def forward(self, value: Any, like: Tensor) -> Tensor:
        """[B] -> [B, width]."""
        if not isinstance(value, Tensor) or value.is_floating_point() or value.shape != like.shape[:1]:
            raise ValueError(f"the attribute {self.name!r} must be whole numbers [{len(like)}], got {_came(value)}")
        return self.table(value.long())


class NumbersEmbedding(nn.Module):
    """An attribute of numbers [B] or [B, features]; rows that are not all finite are "unknown"."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, name: str, features: int, mean: Any = None, std: Any = None) -> None:
        super().__init__()
        self.name, self.features, self.null = name, features, unknown
        self.linear = nn.Linear(features, width)
        self.absent = nn.Embedding(1, width)
        # From the constructor's arguments, so they need no place among the weights.
        self.register_buffer("mean", torch.zeros(features) if mean is None else torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.ones(features) if std is None else torch.tensor(std), persistent=False)

    def forward(self, value: Any, like: Tensor) -> Tensor:
        """[B] or [B, features] -> [B, width]."""
        shapes = [(len(like), self.features)] + [(len(like),)] * (self.features == 1)
        if not isinstance(value, Tensor) or not value.is_floating_point() or tuple(value.shape) not in shapes:
            raise ValueError(
                f"the attribute {self.name!r} must be floats [{len(like)}, {self.features}], got {_came(value)}"
            )
        x = (value.reshape(len(like), self.features).to(self.mean.dtype) - self.mean) / self.std
        known = x.isfinite().all(1, keepdim=True)
        x = torch.where(known, x, torch.zeros_like(x)).to(self.linear.weight.dtype)
        return torch.where(known, self.linear(x), self.absent.weight)


def plain_attributes(attributes: Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]] | None:
    """Attributes as a network records them among its arguments, JSON-able."""
    return None if attributes is None else {name: dict(about) for name, about in attributes.items()}


def unknown(numbers: Any) -> Tensor:
    """The "no condition" of numbers: not a number, which no data hold."""
    return torch.full_like(numbers, float("nan"))


def observed(z: Tensor, cond: Cond, size: int | None) -> Tensor:
    """z [B, C, ...] with the condition's observation behind its channels; size: of the observation, None without one.

    Raises ValueError for an observation that is missing, unasked for, or of another shape.
    """
    seen = cond.get(OBSERVATION) if isinstance(cond, dict) else None
    if size is None:
        if seen is not None:
            raise ValueError(
                f"this network was built without an {OBSERVATION}; build it with observation=, its channels"
            )
        return z
    wanted = (z.shape[0], size, *z.shape[2:])
    if not isinstance(seen, Tensor) or tuple(seen.shape) != wanted:
        raise ValueError(f"this network needs cond[{OBSERVATION!r}] of shape {list(wanted)}, got {_came(seen)}")
    return torch.cat([z, seen.to(z.dtype)], dim=1)


def _came(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


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

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, N, width] -> [B, N, width]; mask [B, N]: the tokens that exist, which alone are looked at."""
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)  # [B, H, N, D]
        seen = None if mask is None else mask[:, None, None, :].expand(-1, -1, n, -1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
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


def sincos_line(width: int, length: int) -> Tensor:
    """Fixed positions [length, width] of a sequence."""
    if width % 2:
        raise ValueError(f"the width must be even for positions in a sequence, got {width}")
    omega = 1.0 / 10_000.0 ** (torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angle = torch.arange(length, dtype=torch.float64)[:, None] * omega
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


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
