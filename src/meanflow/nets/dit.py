"""Diffusion transformer with adaLN-Zero, conditioned on an interval of times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.conditions import Cond
from .layers import (
    Attention,
    ConditionEmbedding,
    Conditioning,
    IntervalEmbedding,
    TimeEmbedding,
    modulate,
    normalize,
    observed,
    patchify,
    plain_attributes,
    sincos_positions,
    unpatchify,
)

# Width, depth and heads; source: arXiv:2505.13447, table 4 (B, M, L, XL) and arXiv:2212.09748, table 1 (S).
SIZES: dict[str, tuple[int, int, int]] = {
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "M": (1024, 16, 16),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
PATCHES = (2, 4, 8)


class DiT(nn.Module):
    """u(z, r, t) for images [B, C, H, W], square or not.

    shape: (C, H, W). patch: side of a token in pixels. classes: number of classes, None without; the index
    `classes` is "no class" (the attribute `null`). condition_features: instead of classes, the length of a
    condition vector (`null` is the zero vector). attributes: instead of both, several, as in ConditionEmbedding; the
    condition is a dict then. observation: channels of an image that the condition shows the network beside z, under
    "observation". conditioning: which times the network sees.
    Raises ValueError when the patch does not divide the size or the heads the width.
    Source: arXiv:2212.09748; two summed time embeddings as in arXiv:2505.13447.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        patch: int = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        classes: int | None = None,
        condition_features: int | None = None,
        attributes: Mapping[str, Mapping[str, Any]] | None = None,
        observation: int | None = None,
        conditioning: Conditioning = "t,t-r",
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "shape": list(shape),
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": heads,
            "classes": classes,
            "condition_features": condition_features,
            "attributes": plain_attributes(attributes),
            "observation": observation,
            "conditioning": conditioning,
            "mlp_ratio": mlp_ratio,
        }
        self.shape, self.patch = _checked_shape(shape, patch), patch
        c, h, w = self.shape
        self.observation = observation
        self.tokens = nn.Linear(patch * patch * (c + (observation or 0)), width)
        self.register_buffer("positions", sincos_positions(width, h // patch, w // patch), persistent=False)
        self.interval = IntervalEmbedding(width, conditioning)
        self.condition = ConditionEmbedding(width, classes, condition_features, attributes)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.final = nn.Linear(width, patch * patch * c)
        initialize(self)

    @classmethod
    def of_size(cls, name: str, shape: tuple[int, int, int], **options: Any) -> DiT:
        """DiT of a published size such as "B/4": S, B, M, L or XL with patch 2, 4 or 8."""
        size, _, patch = name.partition("/")
        if size not in SIZES or not patch.isdigit() or int(patch) not in PATCHES:
            raise ValueError(
                f"unknown DiT size {name!r}; sizes are {', '.join(SIZES)} with patch "
                f"{', '.join(map(str, PATCHES))}, written as B/4"
            )
        width, depth, heads = SIZES[size]
        return cls(shape, patch=int(patch), width=width, depth=depth, heads=heads, **options)

    @property
    def null(self) -> Any:
        """The condition that means "none": a class label, a vector, or a dict of them."""
        return self.condition.null

    def forward(self, z: Tensor, *, t: Tensor, r: Tensor, cond: Cond = None) -> Tensor:
        """z [B, C, H, W], t, r [B], cond class labels [B], vectors or a dict -> u [B, C, H, W]."""
        if z.shape[1:] != self.shape:
            raise ValueError(f"this DiT takes samples [B, {', '.join(map(str, self.shape))}], got {list(z.shape)}")
        x = self.tokens(patchify(observed(z, cond, self.observation), self.patch)) + self.positions  # [B, N, width]
        c = F.silu(self.interval(t, r) + self.condition(cond, z))  # [B, width]
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_modulation(c).chunk(2, dim=1)
        x = self.final(modulate(normalize(x), shift, scale))  # [B, N, patch * patch * C]
        return unpatchify(x, self.patch, self.shape)


class Block(nn.Module):
    """Attention and MLP, each modulated and gated by the condition."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.up = nn.Linear(width, int(width * mlp_ratio))
        self.down = nn.Linear(int(width * mlp_ratio), width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, c: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, N, width], c [B, width] -> [B, N, width]; mask [B, N]: the tokens that exist."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c).chunk(6, dim=1)
        x = x + gate_a[:, None] * self.attention(modulate(normalize(x), shift_a, scale_a), mask)
        hidden = F.gelu(self.up(modulate(normalize(x), shift_m, scale_m)), approximate="tanh")
        return x + gate_m[:, None] * self.down(hidden)


def initialize(net: Any) -> None:
    """Xavier for linear layers, 0.02 for embeddings, zero for gates and output (adaLN-Zero)."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    for module in net.modules():
        if isinstance(module, TimeEmbedding):
            nn.init.normal_(module.hidden.weight, std=0.02)
            nn.init.normal_(module.out.weight, std=0.02)
        elif isinstance(module, Block):
            nn.init.zeros_(module.modulation.weight)
    nn.init.zeros_(net.final_modulation.weight)
    nn.init.zeros_(net.final.weight)


def _checked_shape(shape: tuple[int, ...], patch: int) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ValueError(
            f"a DiT takes images of shape (C, H, W), got {tuple(shape)}; for sequences (C, L) use "
            "SequenceDiT, for other shapes MLP"
        )
    c, h, w = shape
    if patch < 1 or h % patch or w % patch:
        fits = [p for p in range(1, min(h, w) + 1) if h % p == 0 and w % p == 0]
        raise ValueError(f"patch must divide height {h} and width {w}, got {patch}; possible: {fits}")
    return c, h, w
