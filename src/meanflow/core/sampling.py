"""Samplers: from any start time to any end time, in any number of calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .conditions import NOISE, Cond, Null, null_like, take, without_noise
from .derivative import Net, call, evaluating
from .masks import mask_of, masked
from .path import check_samples, like
from .source import Source, drawn


def jump(net: Net, z: Tensor, *, t: Tensor, r: Tensor, cond: Cond = None) -> Tensor:
    """Move samples z [B, *shape] from times t [B] to times r [B] <= t in one call.

    Source: arXiv:2505.13447, eq. 12.
    """
    # z_r = z_t - (t - r) u(z_t, r, t)
    return z - like(t - r, z) * call(net, z, t, r, cond)


def integrate(net: Net, z: Tensor, cond: Cond = None, *, times: Tensor) -> Tensor:
    """Follow the decreasing times [n + 1] or [n + 1, B] with one call per interval.

    Differentiable in z, in conditions and in the network's weights, for use inside a loss. Where the condition has a
    mask, what does not exist is zero from beginning to end.
    """
    cond, _ = without_noise(cond)
    mask = mask_of(cond, z)
    z = masked(z, mask)
    rows = times.to(z.device, torch.promote_types(z.dtype, torch.float32))
    rows = rows.reshape(len(rows), -1).expand(len(rows), len(z))
    for t, r in pairwise(rows):
        z = masked(jump(net, z, t=t, r=r, cond=cond), mask)
    return z


@torch.no_grad()
def sample(
    net: Net,
    noise: Tensor,
    cond: Cond = None,
    *,
    steps: int | None = None,
    times: Sequence[float] | Tensor | None = None,
    guidance: float | None = None,
    null: Null = None,
) -> Tensor:
    """Samples [B, *shape] from noise [B, *shape], without dropout and without a graph.

    noise: N(0, I), or whatever the field was trained from: its source, or the e of a pair (x, e).

    steps: number of network calls at equal intervals from t = 1 to t = 0 (default 1). times: instead of
    steps, any decreasing times in [0, 1], [n + 1] or one column per row [n + 1, B]; the first is the time of
    `noise`. guidance: classifier-free guidance scale at sampling time (two calls per interval), for fields
    trained without guidance; refused where guidance was trained in. null: what "no condition" is.
    Raises ValueError for steps < 1, for times that do not decrease, and for guiding twice.
    """
    check_samples(noise, "noise")
    field = guided(net, guidance, null)
    with evaluating(field):
        return integrate(field, noise, cond, times=schedule_of(steps, times, len(noise)))


def noise_from_seeds(
    seeds: Iterable[int],
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    *,
    source: Source | None = None,
    cond: Cond = None,
) -> Tensor:
    """Noise [len(seeds), *shape]: each row from its own seed, whatever the batch and the device.

    source: where it comes from instead of N(0, I), as in the objective; cond: the conditions that it is asked with.
    """
    one = torch.zeros(1, *shape)
    rows = [
        drawn(source, one, take(cond, slice(i, i + 1)), torch.Generator().manual_seed(seed))
        for i, seed in enumerate(seeds)
    ]
    if not rows:
        raise ValueError("noise_from_seeds needs at least one seed")
    return torch.cat(rows).to(device)


def noise_for(net: Any, seeds: Iterable[int], device: torch.device | str = "cpu", cond: Cond = None) -> Tensor:
    """Noise [len(seeds), *net.shape] from where the paths of a loaded network start: its own source, or N(0, I).

    cond: what its source is asked with. Raises ValueError where only the user has that source or the ends of pairs.
    """
    source, conditions = getattr(net, "source", None), getattr(net, "conditions", None) or {}
    if isinstance(source, str) or NOISE in conditions:
        what = "pairs (x, e)" if NOISE in conditions else f"the source {source}"
        raise ValueError(
            f"this run was trained on {what}, so samples start from what only you have: meanflow sample "
            f"--given FILE.npz with {NOISE!r}, or mf.sample from Python"
        )
    return noise_from_seeds(seeds, net.shape, device, source=source, cond=cond)


class EulerField(nn.Module):
    """A flow-matching network as a mean-velocity field: u(z, r, t) is taken to be v(z, t), so jumps are Euler steps."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, *, t: Tensor, r: Tensor, cond: Cond = None) -> Tensor:
        """v(z, t) [B, *shape]; r is not used."""
        return self.net(z, t=t, r=t, cond=cond)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("net"), name)


class GuidedField(nn.Module):
    """Classifier-free guidance at sampling time: scale u(z, c) + (1 - scale) u(z, null); two calls.

    Raises ValueError when the network was trained with guidance inside.
    Source: arXiv:2505.13447, eq. 13.
    """

    def __init__(self, net: Net, scale: float, null: Null = None) -> None:
        super().__init__()
        trained = getattr(net, "guidance", None)
        if trained is not None and trained.scale != 1:
            raise ValueError(
                f"this network was trained with guidance inside ({trained}); guidance={scale:g} at sampling "
                "would guide twice. Leave guidance out, or train with another scale"
            )
        if getattr(net, "dropped", None) == 0:
            raise ValueError(
                f"guidance={scale:g} needs the field without condition, but this network never saw a dropped "
                "condition; train with Guidance(scale=1.0, drop=0.1), or with the guidance inside"
            )
        self.net, self.scale = net, scale
        self.null = getattr(net, "null", None) if null is None else null

    def forward(self, z: Tensor, *, t: Tensor, r: Tensor, cond: Cond = None) -> Tensor:
        """Guided u [B, *shape]."""
        if cond is None:
            raise ValueError("guidance needs a condition; pass cond=, e.g. class labels [B]")
        u_cond = call(self.net, z, t, r, cond)
        u_null = call(self.net, z, t, r, null_like(cond, self.null))
        return self.scale * u_cond + (1 - self.scale) * u_null


def guided(net: Net, scale: float | None, null: Null = None) -> Net:
    """The field to sample from: guided at sampling time, or as it is for a scale of None or 1."""
    return net if scale is None or scale == 1 else GuidedField(net, scale, null)


def schedule_of(steps: int | None, times: Sequence[float] | Tensor | None, batch: int) -> Tensor:
    """The times of `sample` [n + 1], or [n + 1, B], from 1 or below down to 0 or above, in float64.

    Raises ValueError for both steps and times, and for times that do not decrease or lie outside of [0, 1].
    """
    if times is None:
        n = 1 if steps is None else steps
        if n < 1:
            raise ValueError(f"steps is the number of network calls and must be at least 1, got {n}")
        return torch.linspace(1, 0, n + 1, dtype=torch.float64)
    if steps is not None:
        raise ValueError("pass steps or times, not both: n + 1 times already make n calls")
    schedule = torch.as_tensor(times, dtype=torch.float64)
    if schedule.ndim not in (1, 2) or len(schedule) < 2 or (schedule.ndim == 2 and schedule.shape[1] != batch):
        raise ValueError(f"times must be [n + 1] or [n + 1, {batch}] with n >= 1, got shape {list(schedule.shape)}")
    if not bool(((schedule >= 0) & (schedule <= 1)).all()):
        raise ValueError(f"times must lie in [0, 1] (0 = data, 1 = noise), got {schedule.tolist()}")
    if bool((schedule.diff(dim=0) >= 0).any()) if schedule.ndim == 1 else bool((schedule.diff(dim=0) > 0).any()):
        raise ValueError(f"times must decrease, from noise (1) to data (0); got {schedule.tolist()}")
    return schedule
