"""Residual multi-layer perceptron for samples of any shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.conditions import OBSERVATION, Cond
from .layers import ConditionEmbedding, Conditioning, IntervalEmbedding, observed, plain_attributes


class MLP(nn.Module):
    """u(z, r, t) for samples [B, *shape]: vectors, small images, anything that can be flattened.

    shape: of one sample. classes, condition_features, attributes, conditioning: as in DiT. observation:
    numbers that the condition shows the network beside z, under "observation" [B, observation].
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 256,
        depth: int = 4,
        classes: int | None = None,
        condition_features: int | None = None,
        attributes: Mapping[str, Mapping[str, Any]] | None = None,
        observation: int | None = None,
        conditioning: Conditioning = "t,t-r",
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "shape": list(shape),
            "width": width,
            "depth": depth,
            "classes": classes,
            "condition_features": condition_features,
            "attributes": plain_attributes(attributes),
            "observation": observation,
            "conditioning": conditioning,
        }
        self.shape = tuple(shape)
        size = math.prod(shape)
        self.observation = observation
        self.first = nn.Linear(size + (observation or 0), width)
        self.interval = IntervalEmbedding(width, conditioning)
        self.condition = ConditionEmbedding(width, classes, condition_features, attributes)
        self.blocks = nn.ModuleList(MLPBlock(width) for _ in range(depth))
        self.last = nn.Linear(width, size)

    @property
    def null(self) -> Any:
        """The condition that means "none": a class label, a vector, or a dict of them."""
        return self.condition.null

    def forward(self, z: Tensor, *, t: Tensor, r: Tensor, cond: Cond = None) -> Tensor:
        """z [B, *shape], t, r [B], cond class labels [B], vectors or a dict -> u [B, *shape]."""
        if z.shape[1:] != self.shape:
            raise ValueError(f"this MLP takes samples [B, {', '.join(map(str, self.shape))}], got {list(z.shape)}")
        c = F.silu(self.interval(t, r) + self.condition(cond, z))  # [B, width]
        x = self.first(observed(z.flatten(1), _flat(cond), self.observation))  # [B, width]
        for block in self.blocks:
            x = block(x, c)
        return self.last(F.silu(x)).reshape(z.shape)


def _flat(cond: Cond) -> Cond:
    """The condition with its observation, of any shape, as one row of numbers a sample."""
    seen = cond.get(OBSERVATION) if isinstance(cond, dict) else None
    return {**cond, OBSERVATION: seen.flatten(1)} if isinstance(cond, dict) and isinstance(seen, Tensor) else cond


class MLPBlock(nn.Module):
    """Two layers, modulated by the condition, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x, c [B, width] -> [B, width]."""
        shift, scale = self.modulation(c).chunk(2, dim=1)
        hidden = x * (1 + scale) + shift
        return x + self.down(F.silu(self.up(F.silu(hidden))))
