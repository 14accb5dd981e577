"""The authors' algorithm, re-stated plainly, as the thing that a step's cost and gradients are compared with.

One forward-mode derivative over all rows with a graph through it, and the guidance calls on all rows. It shares no
code with the objectives: the two check each other. Source: arXiv:2505.13447, algorithm 1 and equations 19-22.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def authors_loss(
    net: nn.Module,
    x: Tensor,
    labels: Tensor | None,
    *,
    noise: Tensor,
    t: Tensor,
    r: Tensor,
    dropped: Tensor | None = None,
    null: int = 0,
    w: float = 1.0,
    k: float = 0.0,
    p: float = 1.0,
    c: float = 1e-3,
) -> Tensor:
    """The scalar loss; w = 1 and k = 0 make no guidance calls."""
    wide = (-1,) + (1,) * (x.ndim - 1)
    t_, r_ = t.view(wide), r.view(wide)
    z, v = (1 - t_) * x + t_ * noise, noise - x
    target_velocity, seen = v, labels
    with sdpa_kernel(SDPBackend.MATH):
        if labels is not None and (w != 1 or k != 0):
            nothing = torch.full_like(labels, null)
            with torch.no_grad():
                u_c, u_n = net(z, t=t, r=t, cond=labels), net(z, t=t, r=t, cond=nothing)
            target_velocity = w * v + k * u_c + (1 - w - k) * u_n
        if dropped is not None and labels is not None:
            target_velocity = torch.where(dropped.view(wide), v, target_velocity)
            seen = torch.where(dropped, torch.full_like(labels, null), labels)

        def u_of(z: Tensor, t: Tensor, r: Tensor) -> Tensor:
            return net(z, t=t, r=r, cond=seen)

        if torch.compiler.is_compiling():
            # A compiled derivative fails on slices and on tangents that carry a graph to their end.
            z, t, r = z.clone(), t.clone(), r.clone()
        tangents = (target_velocity, torch.ones_like(t), torch.zeros_like(r))
        u, dudt = torch.func.jvp(u_of, (z, t, r), tangents)[:2]
        if torch.compiler.is_compiling():
            dudt = dudt.detach()
    target = (target_velocity - (t_ - r_).clamp(0, 1) * dudt).detach()
    squared = (u - target).pow(2).flatten(1).sum(1)
    return (squared / (squared.detach() + c).pow(p)).mean()
