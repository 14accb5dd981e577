"""U-Net of the CIFAR-10 experiments: DDPM++ as refined for EDM, conditioned on an interval of times."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.conditions import AUGMENT, Cond
from .layers import CONDITIONINGS, ConditionEmbedding, Conditioning, observed, plain_attributes

Resample = Literal["down", "up"]


class UNet(nn.Module):
    """u(z, r, t) for images [B, C, H, W], square or not.

    shape: (C, H, W). channels: of the first convolution. multipliers: channels of each resolution in units of
    `channels`; each resolution has half the side of the one before. blocks: residual blocks per resolution.
    attention: sides (the shorter one) of the feature maps that attend to themselves. augment_features: length of the
    augmentation label, None without. classes, condition_features, attributes, observation: as in DiT. conditioning:
    which times the network sees; their embeddings are concatenated.
    The condition is None, class labels [B], or a dict, with "label" for them and "augment" [B, augment_features];
    without
    "augment" the image counts as not augmented.
    Raises ValueError when the image cannot be halved often enough.
    Source: arXiv:2011.13456 (DDPM++), arXiv:2206.00364, table 7 (the version used here), arXiv:2505.13447, appendix A.
    """

    frequencies: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        channels: int = 128,
        multipliers: tuple[int, ...] = (2, 2, 2),
        blocks: int = 4,
        attention: tuple[int, ...] = (16,),
        dropout: float = 0.0,
        augment_features: int | None = None,
        classes: int | None = None,
        condition_features: int | None = None,
        attributes: Mapping[str, Mapping[str, Any]] | None = None,
        observation: int | None = None,
        conditioning: Conditioning = "t,t-r",
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "shape": list(shape),
            "channels": channels,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "attention": list(attention),
            "dropout": dropout,
            "augment_features": augment_features,
            "classes": classes,
            "condition_features": condition_features,
            "attributes": plain_attributes(attributes),
            "observation": observation,
            "conditioning": conditioning,
        }
        self.shape = _checked_shape(shape, channels, len(multipliers))
        if conditioning not in CONDITIONINGS:
            raise ValueError(f"conditioning must be one of {CONDITIONINGS}, got {conditioning!r}")
        self.times, self.augment_features = conditioning.split(","), augment_features
        waves, width = 2 * channels, 4 * channels  # features per time, and of the common embedding
        self.register_buffer("frequencies", _frequencies(waves), persistent=False)
        self.augment = nn.Linear(augment_features, waves * len(self.times), bias=False) if augment_features else None
        self.condition = ConditionEmbedding(waves * len(self.times), classes, condition_features, attributes)
        self.hidden = nn.Linear(waves * len(self.times), width)
        self.embedding = nn.Linear(width, width)
        self.observation = observation
        self.first = nn.Conv2d(shape[0] + (observation or 0), channels, 3, padding=1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        self._add_blocks([channels * m for m in multipliers], blocks, set(attention), width, dropout)
        self.norm = _group_norm(channels * multipliers[0])
        self.last = nn.Conv2d(channels * multipliers[0], shape[0], 3, padding=1)
        self._initialize()

    @property
    def null(self) -> Any:
        """The condition that means "none": a class label, a vector, or a dict of them."""
        return self.condition.null

    def forward(self, z: Tensor, *, t: Tensor, r: Tensor, cond: Cond = None) -> Tensor:
        """z [B, C, H, W], t, r [B], cond None, class labels [B] or a dict -> u [B, C, H, W]."""
        if z.shape[1:] != self.shape:
            raise ValueError(f"this U-Net takes samples [B, {', '.join(map(str, self.shape))}], got {list(z.shape)}")
        c = self._embed(z, t, r, cond)  # [B, width]
        x = self.first(observed(z, cond, self.observation))
        skips = [x]
        for block in self.encoder:
            x = block(x, c)
            skips.append(x)
        for block in self.decoder:
            if block.takes_skip:
                x = torch.cat([x, skips.pop()], dim=1)
            x = block(x, c)
        return self.last(F.silu(self.norm(x)))

    def _embed(self, z: Tensor, t: Tensor, r: Tensor, cond: Cond) -> Tensor:
        """Times, label and augmentation as one vector [B, width], in float32 or better whatever the autocast."""
        augment = cond.get(AUGMENT) if isinstance(cond, dict) else None
        times = {"t": t, "r": r, "t-r": t - r}
        with torch.autocast(z.device.type, enabled=False):
            angles = [times[name][:, None] * self.frequencies.to(t.dtype) for name in self.times]
            waves = torch.cat([w for a in angles for w in (a.sin(), a.cos())], dim=1).to(self.hidden.weight.dtype)
            waves = waves + self.condition(cond, z)
            if augment is not None:
                waves = waves + self._augmentation(augment)
            return F.silu(self.embedding(F.silu(self.hidden(waves))))

    def _augmentation(self, augment: object) -> Tensor:
        if self.augment is None:
            raise ValueError(
                "this network was built without augmentation labels: build it with augment_features=, or leave "
                f"{AUGMENT!r} out of cond"
            )
        if not isinstance(augment, Tensor) or augment.shape[-1] != self.augment_features:
            raise ValueError(f"augmentation labels must be [B, {self.augment_features}], got {augment!r:.80}")
        return self.augment(augment.to(self.augment.weight.dtype))

    def _add_blocks(self, widths: list[int], blocks: int, attention: set[int], c: int, dropout: float) -> None:
        """Encoder and decoder. The decoder takes in, in reverse order, every feature map that the encoder made."""
        side, x = min(self.shape[1:]), self.first.out_channels
        made = [x]
        for level, width in enumerate(widths):
            if level > 0:
                side //= 2
                self.encoder.append(UNetBlock(x, x, c, dropout, "down"))
                made.append(x)
            for _ in range(blocks):
                self.encoder.append(UNetBlock(x, width, c, dropout, attention=side in attention))
                x = width
                made.append(x)
        self.decoder.append(UNetBlock(x, x, c, dropout, attention=True))
        self.decoder.append(UNetBlock(x, x, c, dropout))
        for level, width in reversed(list(enumerate(widths))):
            if level < len(widths) - 1:
                side *= 2
                self.decoder.append(UNetBlock(x, x, c, dropout, "up"))
            for i in range(blocks + 1):
                attends = i == blocks and side in attention
                self.decoder.append(UNetBlock(x, width, c, dropout, attention=attends, skip_channels=made.pop()))
                x = width

    def _initialize(self) -> None:
        """Xavier everywhere; nearly zero where a residual branch and the network end (EDM's initialisation)."""
        small = [self.last, *(m for b in self.modules() if isinstance(b, UNetBlock) for m in b.small())]
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight, gain=1e-5 if any(module is m for m in small) else 1.0)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, SpatialAttention):
                nn.init.xavier_uniform_(module.qkv.weight, gain=math.sqrt(0.2))


class UNetBlock(nn.Module):
    """Two convolutions between which the condition is added, and a shortcut; then self-attention where asked for.

    skip_channels: channels of the encoder's feature map that the caller appends to the input.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        condition: int,
        dropout: float,
        resample: Resample | None = None,
        *,
        attention: bool = False,
        skip_channels: int = 0,
    ) -> None:
        super().__init__()
        taken, self.takes_skip = channels + skip_channels, skip_channels > 0
        self.norm_in = _group_norm(taken)
        self.conv_in = nn.Conv2d(taken, out, 3, padding=1)
        self.shift = nn.Linear(condition, out)
        self.norm_out = _group_norm(out)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = nn.Conv2d(out, out, 3, padding=1)
        self.resample = Resampling(resample) if resample else None
        self.shortcut = nn.Conv2d(taken, out, 1) if resample or taken != out else None
        self.attention = SpatialAttention(out) if attention else None

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x [B, channels + skip_channels, H, W], c [B, condition] -> [B, out, H', W']."""
        hidden = F.silu(self.norm_in(x))
        if self.resample is not None:
            hidden, x = self.resample(hidden), self.resample(x)
        hidden = self.conv_in(hidden) + self.shift(c)[:, :, None, None].to(hidden.dtype)
        hidden = self.conv_out(self.dropout(F.silu(self.norm_out(hidden))))
        # Sums of two branches are divided by sqrt(2), so that their variance stays.
        x = (hidden + (x if self.shortcut is None else self.shortcut(x))) * math.sqrt(0.5)
        return x if self.attention is None else (x + self.attention(x)) * math.sqrt(0.5)

    def small(self) -> list[nn.Conv2d]:
        """The layers that end a residual branch."""
        return [self.conv_out] if self.attention is None else [self.conv_out, self.attention.out]


class SpatialAttention(nn.Module):
    """Self-attention with one head over the pixels of [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W], without the shortcut around it."""
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, c, h * w).permute(1, 0, 3, 2)  # [B, N, C] each
        y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return self.out(y.transpose(1, 2).reshape(b, c, h, w))


class Resampling(nn.Module):
    """Half or double the sides of [B, C, H, W] with the filter (1, 3, 3, 1)."""

    taps: Tensor

    def __init__(self, kind: Resample) -> None:
        super().__init__()
        self.kind = kind
        line = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("taps", torch.outer(line, line)[None, None] / line.sum() ** 2, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H / 2, W / 2] or [B, C, 2 H, 2 W]."""
        channels = x.shape[1]
        taps = self.taps.to(x.dtype).expand(channels, 1, 4, 4)
        if self.kind == "down":
            return F.conv2d(x, taps, stride=2, padding=1, groups=channels)
        # Each output pixel sees a quarter of the taps.
        return F.conv_transpose2d(x, 4 * taps, stride=2, padding=1, groups=channels)


def _group_norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups of at least 4 channels, as in EDM."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)


def _frequencies(features: int, max_period: float = 10_000.0) -> Tensor:
    """features / 2 frequencies from 1 down to 1 / max_period, both ends included."""
    half = features // 2
    return (max_period ** -(torch.arange(half, dtype=torch.float64) / (half - 1))).float()


def _checked_shape(shape: tuple[int, ...], channels: int, levels: int) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ValueError(f"a U-Net takes images of shape (C, H, W), got {tuple(shape)}; for other shapes use MLP")
    c, h, w = shape
    factor = 2 ** (levels - 1)
    if levels < 1 or h % factor or w % factor:
        raise ValueError(
            f"{levels} resolutions halve the image {levels - 1} times, so height {h} and width {w} must be divisible "
            f"by {factor}; pass fewer multipliers, or pad or resize the images"
        )
    if channels < 4 or channels % 4:
        raise ValueError(f"channels must be a multiple of 4, got {channels}")
    return c, h, w
