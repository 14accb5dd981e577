"""Power-function averages: their shape, and the combination of kept ones that comes nearest to any other.

Source: arXiv:2312.02696 (EDM2), section 3 and appendix C. A profile of exponent g after n steps weighs the weights of
step s by p(s) = (g + 1) / n (s / n)^g, so its window grows with the run; its relative length sigma is its standard
deviation over n.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

# sigma of the uniform average (exponent 0), sqrt(1 / 12); a longer one would weigh the first steps most.
LONGEST = 12**-0.5


class Profile(NamedTuple):
    """The profile of relative length sigma, as it was after `steps` steps."""

    steps: int
    sigma: float


class Fit(NamedTuple):
    """Coefficients of the kept profiles [N], and how far their combination is from the wanted profile.

    error: relative distance in the L2 norm of profiles. total: the sum of the coefficients by which they were divided.
    """

    coefficients: np.ndarray
    error: float
    total: float


def check_length(sigma: float) -> None:
    """Raise ValueError unless a power-function average of this relative length exists."""
    if not 0 < sigma < LONGEST:
        raise ValueError(
            f"the relative length of a power-function average lies between 0 and {LONGEST:.4f} (the uniform "
            f"average), got {sigma:g}; 0.05 and 0.10 are usual"
        )


@lru_cache
def exponent(sigma: float) -> float:
    """The exponent g of the profile whose relative length is sigma.

    Source: arXiv:2312.02696, appendix C, where sigma^2 = (g + 1) / ((g + 2)^2 (g + 3)).
    """
    check_length(sigma)
    # g^3 + 7 g^2 + (16 - sigma^-2) g + 12 - sigma^-2 = 0; the largest root is the one above -1.
    over = sigma**-2
    return float(np.roots([1, 7, 16 - over, 12 - over]).real.max())


def relative_length(g: float) -> float:
    """Relative length sigma of the profile with exponent g."""
    return float(np.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3))))


def power_decay(g: float, updates: int, every: int = 1) -> float:
    """Decay of the update at step number `updates`, the last one having been `every` steps before.

    It is 0 at the first update, so the initial weights have no part. Source: arXiv:2312.02696, eq. 4.
    """
    # theta_t = beta theta_(t-1) + (1 - beta) theta, beta = (1 - 1/t)^(g + 1)
    return float((1 - every / updates) ** (g + 1))


def inner(a: Sequence[Profile], b: Sequence[Profile]) -> np.ndarray:
    """Inner products [len(a), len(b)] of profiles, in units of 1 / steps.

    Source: arXiv:2312.02696, appendix C.
    """
    n, g = np.array([[p.steps, exponent(p.sigma)] for p in a]).T[..., None]
    m, h = np.array([[p.steps, exponent(p.sigma)] for p in b]).T[:, None]
    # The integral of p_a p_b over [0, min(n, m)]: (g + 1) (h + 1) / (g + h + 1) * ratio^(exponent of the longer) / max
    ratio, power = np.minimum(n, m) / np.maximum(n, m), np.where(n < m, h, g)
    return (g + 1) * (h + 1) / ((g + h + 1) * np.maximum(n, m)) * ratio**power


def solve(kept: Sequence[Profile], wanted: Profile) -> Fit:
    """The combination of kept profiles that is nearest to the wanted one; float64.

    Its coefficients are then divided by their sum, as the authors' code does (NVlabs/edm2), so that weights that do
    not change come out as they are: with few profiles all would shrink by some per cent.
    Source: arXiv:2312.02696, algorithm 3. Raises ValueError when no profile was kept by then.
    """
    if not kept or min(p.steps for p in kept) > wanted.steps:
        raise ValueError(f"no profile was kept by step {wanted.steps}; there is nothing to rebuild from")
    gram, right = inner(kept, kept), inner(kept, [wanted])[:, 0]
    # Of unit length, since norms of early and late profiles differ by orders; near ones make the matrix singular.
    scale = np.sqrt(gram.diagonal())
    found = np.linalg.lstsq(gram / np.outer(scale, scale), right / scale, rcond=1e-15)[0] / scale
    shrunk = float(found.sum())
    found = found / shrunk
    norm = inner([wanted], [wanted])[0, 0]
    left = max(norm - 2 * found @ right + found @ gram @ found, 0.0)
    return Fit(found, float(np.sqrt(left / norm)), shrunk)
