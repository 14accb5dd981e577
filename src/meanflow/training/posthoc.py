"""Averages of any length after the run, rebuilt from snapshots of a few power-function averages.

Source: arXiv:2312.02696 (EDM2), section 3.2.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..data.files import whole_file
from . import checkpoint
from .checkpoint import CheckpointError
from .profiles import Fit, Profile, check_length, solve

PROFILES = "averages"  # folder of the snapshots in that of a run
# Our choice: profiles further from the wanted one than this are said. It is what 0.25 reaches from 32 snapshots.
WORTH_SAYING = 0.05


class Kept(NamedTuple):
    """One average in one snapshot: its file, its profile, and the images seen by then."""

    file: Path
    profile: Profile
    images: int


@dataclass(frozen=True)
class PosthocEMA:
    """A rebuilt average: weights under their names in the objective, in float32, and how well its profile was met."""

    state: dict[str, Tensor]
    sigma: float
    images: int
    """Images seen at its end."""
    snapshots: int
    """Averages it was combined from."""
    error: float
    """Relative distance of its profile from the ideal one, in the L2 norm of profiles."""


def profile_file(sigma: float) -> str:
    """Name of the file of a power-function average."""
    return f"power-{sigma:g}.safetensors"


def posthoc_ema(run: str | Path, sigma_rel: float, at: int | None = None) -> PosthocEMA:
    """The power-function average of relative length sigma_rel, as if it had been kept through the run.

    at: images seen at its end, the time of a snapshot; None takes the last one. Damaged snapshots are warned of and
    left out. Raises ValueError for a length outside (0, 0.2887), a run without snapshots, and a time without one.
    Source: arXiv:2312.02696, algorithm 3; coefficients sum to 1 here.
    """
    kept, fit = _fitted(run, sigma_rel, at)
    last = kept[-1]
    if fit.error > WORTH_SAYING:
        warnings.warn(
            f"the average of relative length {sigma_rel:g} is rebuilt with a profile {100 * fit.error:.0f} % away from "
            f"the ideal one, from {len(kept)} averages; more snapshots, or one of a nearer length, would be better",
            stacklevel=2,
        )
    return PosthocEMA(_combined(kept, fit), sigma_rel, last.images, len(kept), fit.error)


def profile_error(run: str | Path, sigma_rel: float, at: int | None = None) -> float:
    """Relative distance of a rebuilt average's profile from the ideal one, without rebuilding it."""
    return _fitted(run, sigma_rel, at, whole=False)[1].error


def _fitted(run: str | Path, sigma: float, at: int | None, whole: bool = True) -> tuple[list[Kept], Fit]:
    """The averages to combine, and how."""
    check_length(sigma)
    kept = _until(kept_averages(run, whole), at, Path(run))
    return kept, solve([k.profile for k in kept], Profile(kept[-1].profile.steps, sigma))


def kept_averages(run: str | Path, whole: bool = True) -> list[Kept]:
    """Every power-function average in the snapshots of a run, oldest first; damaged ones are warned of and left out.

    whole: whether the files are compared with their checksums.
    """
    folder, kept = Path(run) / PROFILES, []
    for path in checkpoint.checkpoints(folder):
        try:
            if whole:
                checkpoint.verify(path)
            about = checkpoint.read_state(path)
        except CheckpointError as error:
            warnings.warn(f"{error}. Leaving this snapshot out", stacklevel=3)
            continue
        kept += [
            Kept(path / profile_file(sigma), Profile(about["steps"], sigma), about["images"])
            for sigma in about["sigmas"]
            if about["steps"] > 0
        ]
    if not kept:
        raise ValueError(
            f"{run} has no snapshots of power-function averages; train with --ema-power 0.05 0.1 "
            "(in Python ema_power=(0.05, 0.1)) to rebuild averages afterwards"
        )
    return kept


def _until(kept: list[Kept], at: int | None, run: Path) -> list[Kept]:
    """The averages up to the snapshot after `at` images."""
    times = sorted({k.images for k in kept})
    if at is not None and at not in times:
        near = ", ".join(map(str, sorted(times, key=lambda t: abs(t - at))[:3]))
        raise ValueError(f"{run} has no snapshot after {at} images; the nearest ones are after {near}")
    return [k for k in kept if at is None or k.images <= at]


def _combined(kept: Sequence[Kept], fit: Fit) -> dict[str, Tensor]:
    """The weighted sum of all averages, a tensor at a time, so that memory holds one model; counters are the last."""
    state = {}
    with ExitStack() as stack:
        files: list[Any] = [stack.enter_context(safe_open(k.file, framework="pt")) for k in kept]
        for name in files[-1].keys():  # noqa: SIM118 - it is no dict
            last = files[-1].get_tensor(name)
            if not last.is_floating_point():
                state[name] = last
                continue
            total = torch.zeros(last.shape, dtype=torch.float64)
            for file, weight in zip(files, fit.coefficients.tolist(), strict=True):
                total.add_(file.get_tensor(name).double(), alpha=weight)
            state[name] = total.to(last.dtype)
    return state


def write_average(found: PosthocEMA, file: Path) -> Path:
    """Write a rebuilt average as safetensors, whole or not at all, with length, images and error as its metadata."""
    about = {"sigma_rel": f"{found.sigma:g}", "images": str(found.images), "profile_error": f"{found.error:.6g}"}
    with whole_file(file) as aside:
        save_file(found.state, aside, metadata=about)
    return file
