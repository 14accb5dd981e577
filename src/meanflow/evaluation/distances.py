"""Distances between sets of samples, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and covariance [D, D] of features, float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Gaussian:
        """Fit to features [N, D] with the unbiased covariance; raises ValueError for N < 2 or values not finite."""
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"features must be [N, D] with N >= 2, got {list(features.shape)}")
        if not bool(features.isfinite().all()):
            raise ValueError("features contain NaN or Inf; look at the samples they come from")
        f = features.double()
        return cls(f.mean(0), torch.cov(f.T).reshape(f.shape[1], f.shape[1]))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians, as FID uses it.

    |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)); the trace of the root through symmetric eigenvalues.
    Source: arXiv:1706.08500, eq. 6.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    # tr (A B)^(1/2) = sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric.
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp_min(0).sqrt().sum()
    trace = a.covariance.trace() + b.covariance.trace() - 2 * cross
    return float((a.mean - b.mean).square().sum() + trace)


def nearest_distances(x: Tensor, reference: Tensor, chunk: int = 1024) -> Tensor:
    """Euclidean distance [N] of each row of x [N, D] to its nearest row of reference [M, D]."""
    return torch.cat([torch.cdist(rows, reference).min(1).values for rows in x.split(chunk)])
