"""The straight path between data and noise, and the one helper that broadcasts times."""

import math

import torch
from torch import Tensor


def like(t: Tensor, z: Tensor) -> Tensor:
    """Reshape times [B] to [B, 1, ...] so that they broadcast over samples z [B, *shape]."""
    return t.reshape(-1, *[1] * (z.ndim - 1))


def relative(a: Tensor, b: Tensor) -> float:
    """How far a is from b: |a - b| / |b|, infinite where either is not finite."""
    distance = float((a - b).norm() / b.norm().clamp_min(1e-30))
    return distance if math.isfinite(distance) else math.inf


def interpolate(x: Tensor, e: Tensor, t: Tensor) -> Tensor:
    """Point z_t [B, *shape] on the path from data x (t = 0) to noise e (t = 1); t is [B] in [0, 1].

    Source: arXiv:2505.13447, section 3.
    """
    # z_t = (1 - t) x + t e
    s = like(t, x)
    return (1 - s) * x + s * e


def conditional_velocity(x: Tensor, e: Tensor) -> Tensor:
    """Velocity v_t = e - x [B, *shape] of the straight path, the same at every time.

    It is not the marginal velocity: that is its expectation given z_t.
    Source: arXiv:2505.13447, section 3.
    """
    return e - x


def check_times(z: Tensor, t: Tensor, r: Tensor) -> None:
    """Raise ValueError unless t and r are [B] and 0 <= r <= t <= 1 for samples z [B, *shape]."""
    for name, time in (("t", t), ("r", r)):
        if time.shape != (len(z),):
            raise ValueError(
                f"{name} must have shape [{len(z)}], got {list(time.shape)}; "
                f"pass one time per sample, e.g. torch.full(({len(z)},), 0.5)"
            )
        if not time.is_floating_point():
            raise ValueError(f"{name} must be a floating-point tensor, got {time.dtype}; use {name}.float()")
        if not bool(((time >= 0) & (time <= 1)).all()):
            raise ValueError(
                f"{name} must lie in [0, 1] (0 = data, 1 = noise), got values from {float(time.min()):.6g} "
                f"to {float(time.max()):.6g}; divide step numbers by their maximum"
            )
    late = r > t
    if bool(late.any()):
        row = int(late.nonzero()[0])
        raise ValueError(
            f"r must not exceed t, but row {row} has r = {float(r[row]):.6g} > t = {float(t[row]):.6g}; "
            "t is the noisier end of the interval, swap the two"
        )


def check_samples(x: Tensor, name: str = "x") -> None:
    """Raise ValueError unless x is a floating-point batch [B, *shape] with B >= 1."""
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"{name} must be a batch [B, *shape] with B >= 1, got shape {list(x.shape)}")
    if x.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise ValueError(
            f"{name} must be float32, float64 or bfloat16, got {x.dtype}; images in uint8 become x.float() / 127.5 - 1"
        )
