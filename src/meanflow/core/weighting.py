"""Adaptive loss weighting."""

from dataclasses import dataclass

import torch
from torch import Tensor


def squared_norm(d: Tensor) -> Tensor:
    """||d||^2 of each row [B]: summed over all dimensions, never averaged, in float32 or better."""
    d = d.to(torch.promote_types(d.dtype, torch.float32))
    return d.square().flatten(1).sum(1)


@dataclass(frozen=True)
class AdaptiveWeight:
    """Weight 1 / (||D||^2 + c)^p of each row, without gradient.

    Source: arXiv:2505.13447, eq. 22.
    """

    p: float = 1.0
    """Power: 0 is the plain squared error, 0.5 about pseudo-Huber, 1 the paper's choice."""
    c: float = 1e-3
    """Constant: 1e-3 in the paper ("e.g.") and the authors' CIFAR code, 1e-2 in their JAX code."""

    def __post_init__(self) -> None:
        if not (self.p >= 0 and self.c > 0):
            raise ValueError(f"AdaptiveWeight needs p >= 0 and c > 0, got p={self.p}, c={self.c}")

    def __call__(self, squared_error: Tensor) -> Tensor:
        """Weights [B] for squared errors [B]."""
        return (squared_error.detach() + self.c).pow(-self.p)
