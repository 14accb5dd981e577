"""Diffusion transformer for sequences, of one length or padded to one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.conditions import Cond
from ..core.masks import mask_of, masked
from .dit import Block, initialize
from .layers import (
    ConditionEmbedding,
    Conditioning,
    IntervalEmbedding,
    modulate,
    normalize,
    observed,
    plain_attributes,
    sincos_line,
)


class SequenceDiT(nn.Module):
    """u(z, r, t) for sequences [B, C, L], with a mask [B, L] where they have different lengths.

    shape: (C, L) with the largest length; shorter batches are taken too. patch: values in a token. The mask is the
    condition's entry "mask": what it leaves out is neither looked at nor changes anything, so a padded sequence gives
    what it gives alone. classes, condition_features, attributes, observation, conditioning: as in DiT.
    Raises ValueError for sequences that are too long.
    """

    positions: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        patch: int = 4,
        width: int = 192,
        depth: int = 6,
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
        if len(shape) != 2 or patch < 1:
            raise ValueError(f"a SequenceDiT takes shape (C, L) and patch >= 1, got {tuple(shape)} and {patch}")
        self.shape, self.patch, self.observation = (int(shape[0]), int(shape[1])), patch, observation
        c, length = self.shape
        self.tokens = nn.Linear(patch * (c + (observation or 0)), width)
        self.register_buffer("positions", sincos_line(width, -(-length // patch)), persistent=False)
        self.interval = IntervalEmbedding(width, conditioning)
        self.condition = ConditionEmbedding(width, classes, condition_features, attributes)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.final = nn.Linear(width, patch * c)
        initialize(self)

    @property
    def null(self) -> Any:
        """The condition that means "none": a class label, a vector, or a dict of them."""
        return self.condition.null

    def forward(self, z: Tensor, *, t: Tensor, r: Tensor, cond: Cond = None) -> Tensor:
        """z [B, C, L], t, r [B], cond None, class labels, vectors or a dict -> u [B, C, L]."""
        c, longest = self.shape
        if z.ndim != 3 or z.shape[1] != c or z.shape[2] > longest:
            raise ValueError(f"this SequenceDiT takes sequences [B, {c}, up to {longest}], got {list(z.shape)}")
        mask = mask_of(cond, z)
        lengthened = -z.shape[2] % self.patch
        x = F.pad(masked(observed(z, cond, self.observation), mask), (0, lengthened))
        x = self.tokens(_tokens(x, self.patch))  # [B, N, width]
        x = x + self.positions[: x.shape[1]]
        exists = None if mask is None else _exists(mask, lengthened, self.patch)
        e = F.silu(self.interval(t, r) + self.condition(cond, z))  # [B, width]
        for block in self.blocks:
            x = block(x, e, exists)
        shift, scale = self.final_modulation(e).chunk(2, dim=1)
        x = self.final(modulate(normalize(x), shift, scale))  # [B, N, patch * C]
        x = x.reshape(x.shape[0], -1, c).transpose(1, 2)  # [B, C, N * patch]
        return masked(x[:, :, : z.shape[2]], mask)


def _tokens(x: Tensor, patch: int) -> Tensor:
    """[B, C, L] -> [B, L / patch, patch * C]."""
    b, c, length = x.shape
    return x.transpose(1, 2).reshape(b, length // patch, patch * c)


def _exists(mask: Tensor, lengthened: int, patch: int) -> Tensor:
    """Which tokens [B, N] hold anything, of a mask [B, 1 or C, L]."""
    places = F.pad(mask.any(1), (0, lengthened))
    return places.reshape(len(places), -1, patch).any(2)
