"""Distances between sets of samples, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and covariance [D, D] of features, float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Gaussian:
        """Fit to features [N, D] with the unbiased covariance; raises ValueError for N < 2 or values not finite."""
        return Moments.of(features).gaussian()


@dataclass(frozen=True)
class Moments:
    """Count, mean [D] and co-moment [D, D] = sum (f - mean)(f - mean)^T in float64: parts of a stream that add up."""

    count: int
    mean: Tensor
    comoment: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Moments of features [N, D]; raises ValueError for other shapes and for values not finite."""
        if features.ndim != 2 or len(features) < 1:
            raise ValueError(f"features must be [N, D] with N >= 1, got {list(features.shape)}")
        if not bool(features.isfinite().all()):
            raise ValueError("features contain NaN or Inf; look at the samples they come from")
        f = features.double()
        mean = f.mean(0)
        return cls(len(f), mean, (f - mean).T @ (f - mean))

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets together.

        Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
        1979, eq. 2.1, for products instead of squares.
        """
        n = self.count + other.count
        # C = C_a + C_b + (m_b - m_a)(m_b - m_a)^T n_a n_b / n;  no difference of large numbers, unlike sums of squares
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / n)
        comoment = self.comoment + other.comoment + torch.outer(apart, apart) * (self.count * other.count / n)
        return Moments(n, mean, comoment)

    @classmethod
    def total(cls, parts: Iterable[Moments]) -> Moments:
        """The parts added in their order."""
        first, *rest = parts
        for part in rest:
            first = first + part
        return first

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance; raises ValueError for fewer than two samples."""
        if self.count < 2:
            raise ValueError(f"a covariance needs features [N, D] with N >= 2, got N = {self.count}")
        return Gaussian(self.mean, self.comoment / (self.count - 1))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians, as FID uses it.

    |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)); the trace of the root through symmetric eigenvalues.
    Source: arXiv:1706.08500, eq. 6.
    """
    return FrechetTo(a)(b)


class FrechetTo:
    """Frechet distance to one fixed Gaussian, whose root is taken once."""

    def __init__(self, reference: Gaussian) -> None:
        self.reference = reference
        values, vectors = torch.linalg.eigh(reference.covariance)
        self.root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T

    def __call__(self, other: Gaussian) -> float:
        """Squared distance; see `frechet_distance`."""
        a, b = self.reference, other
        # tr (A B)^(1/2) = sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric.
        cross = torch.linalg.eigvalsh(self.root @ b.covariance @ self.root).clamp_min(0).sqrt().sum()
        trace = a.covariance.trace() + b.covariance.trace() - 2 * cross
        return float((a.mean - b.mean).square().sum() + trace)


def kernel_distance(
    x: Tensor, y: Tensor, *, subsets: int = 100, size: int = 1000, degree: int = 3, seed: int = 0
) -> float:
    """Unbiased squared MMD of features [N, D], [M, D] with the kernel (x.y / D + 1)^degree: KID on Inception features.

    The mean over `subsets` draws of `size` rows without replacement from each; size is cut to the smaller set.
    It may be negative. Source: arXiv:1801.01401, section 4; numbers of subsets: the same paper's code.
    """
    n = min(size, len(x), len(y))
    subsets = 1 if n == len(x) == len(y) else subsets  # all subsets are the whole
    generator = torch.Generator().manual_seed(seed)
    draws = [(torch.randperm(len(s), generator=generator)[:n] for s in (x, y)) for _ in range(subsets)]
    values = [unbiased_mmd(x[i], y[j], lambda a, b: polynomial(a, b, degree)) for i, j in draws]
    return sum(values) / len(values)


def polynomial(x: Tensor, y: Tensor, degree: int = 3) -> Tensor:
    """Kernel [N, M] of features [N, D], [M, D]: (x.y / D + 1)^degree."""
    return (x @ y.T / x.shape[1] + 1) ** degree


def mmd_influence(x: Tensor, y: Tensor, kernel: Kernel, *, most: int = 2000, chunk: int = 1024) -> Tensor:
    """How much each row of x [N, D] moves the squared MMD to y, with mean zero: [N] float64.

    2 (mean_j k(x_i, x_j) - mean_j k(x_i, y_j)), less its mean; averages over at most `most` evenly spaced rows. The
    mean of such terms over resampled rows has the spread of the MMD itself, to first order (Gretton et al., JMLR 13
    (2012), section 4.2), at the price of one kernel matrix.
    """
    own, other = (s[:: -(-len(s) // most)].double() for s in (x, y))
    moved = torch.cat([kernel(r, own).mean(1) - kernel(r, other).mean(1) for r in x.double().split(chunk)])
    return 2 * (moved - moved.mean())


def unbiased_mmd(x: Tensor, y: Tensor, kernel: Kernel) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy between x [N, D] and y [M, D].

    kernel: function of two sets that returns [N, M]. Source: Gretton et al., JMLR 13 (2012), eq. 3.
    """
    x, y = x.double(), y.double()
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"the unbiased MMD needs two samples of each set, got {n} and {m}")
    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (kernel(x, x), kernel(y, y))]
    return float(within[0] + within[1] - 2 * kernel(x, y).mean())


def gaussian_mmd(x: Tensor, y: Tensor, *, most: int = 2000, seed: int = 0) -> float:
    """Unbiased squared MMD of vectors [N, D], [M, D] with Gaussian kernels of five widths, on at most `most` rows each.

    Widths: 1/4, 1/2, 1, 2 and 4 times the median distance within y (our choice; the median heuristic is Gretton's).
    """
    generator = torch.Generator().manual_seed(seed)
    x, y = (s[torch.randperm(len(s), generator=generator)[:most]].double() for s in (x, y))
    return unbiased_mmd(x, y, gaussian_kernel(y))


def gaussian_kernel(y: Tensor, most: int = 2000) -> Kernel:
    """The mean of Gaussian kernels of five widths around the median distance within y [M, D]."""
    rows = y[:: -(-len(y) // most)].double()
    width = torch.cdist(rows, rows).square().median().clamp_min(torch.finfo(torch.float64).tiny)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = torch.cdist(a, b).square() / width
        return torch.stack([torch.exp(-squares / (2 * s**2)) for s in (0.25, 0.5, 1.0, 2.0, 4.0)]).mean(0)

    return kernel


def sliced_wasserstein(x: Tensor, y: Tensor, *, directions: int = 128, quantiles: int = 1000, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance of vectors [N, D], [M, D]: root of the mean square over random directions.

    On every direction the distance of the empirical quantile functions at `quantiles` midpoints.
    Source: Bonneel et al., J. Math. Imaging Vis. 51 (2015), eq. 10; directions and quantiles are our choice.
    """
    generator = torch.Generator().manual_seed(seed)
    lines = torch.randn(x.shape[1], directions, generator=generator, dtype=torch.float64)
    lines /= lines.norm(dim=0, keepdim=True)
    at = (torch.arange(quantiles, dtype=torch.float64) + 0.5) / quantiles
    a, b = (_quantiles(s.double() @ lines, at) for s in (x, y))
    return float((a - b).square().mean().sqrt())


def _quantiles(values: Tensor, at: Tensor) -> Tensor:
    """Quantiles [Q, L] of each column of values [N, L]; torch.quantile takes no more than 2^24 values."""
    ordered, where = values.sort(0).values, at * (len(values) - 1)
    low = where.floor().long()
    high = (low + 1).clamp_max(len(values) - 1)
    return ordered[low].lerp(ordered[high], (where - low)[:, None])


def nearest_distances(x: Tensor, reference: Tensor, chunk: int = 1024) -> Tensor:
    """Euclidean distance [N] of each row of x [N, D] to its nearest row of reference [M, D]."""
    return torch.cat([torch.cdist(rows, reference).min(1).values for rows in x.split(chunk)])


def radii(x: Tensor, k: int, chunk: int = 1024) -> Tensor:
    """Distance [N] of each row of x [N, D] to its k-th nearest other row, in float64."""
    x = x.double()
    if len(x) <= k:
        raise ValueError(f"the {k}-th neighbour needs more than {k} samples, got {len(x)}")
    # A row is its own nearest, at the distance 0.
    return torch.cat([torch.cdist(rows, x).kthvalue(k + 1, dim=1).values for rows in x.split(chunk)])


def in_balls(x: Tensor, centres: Tensor, radius: Tensor, chunk: int = 1024) -> Tensor:
    """How many of the balls around centres [M, D] with radius [M] hold each row of x [N, D]: [N]."""
    centres = centres.double()
    return torch.cat([(torch.cdist(rows.double(), centres) <= radius).sum(1) for rows in x.split(chunk)])


def inception_score(logits: Tensor) -> float:
    """exp of the mean KL divergence of p(y | x) to p(y), from logits [N, K]; one split.

    Source: arXiv:1606.03498, section 4. Papers that say ten splits average ten such scores of N / 10 samples, which
    is lower.
    """
    log_p = torch.log_softmax(logits.double(), 1)
    p = log_p.exp()
    marginal = p.mean(0).clamp_min(torch.finfo(torch.float64).tiny).log()
    return float((p * (log_p - marginal)).sum(1).mean().exp())
