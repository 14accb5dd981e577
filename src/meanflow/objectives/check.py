"""Whether a network keeps the contract, found out on two rows before any training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..core.conditions import Cond, shown, take, without_noise
from ..core.derivative import central_difference, evaluating, jvp
from .base import Objective

# Our choice: below the scale of any trained layer, above that of layers which begin at 1e-5 instead of 0.
NEARLY_ZERO = 1e-4


@torch.no_grad()
def check_network(objective: Objective, x: Tensor, cond: Cond = None) -> None:
    """Run the objective's network on the first two rows of x [B, *shape] and raise ValueError unless it

    returns the shape and dtype of its input, and depends on t (for mean velocities on r too) in a way that
    forward-mode differentiation sees. Parameters that are zero, as in adaLN-Zero, or nearly, as in EDM's U-Net, are
    filled with small noise for this: they would hide every dependence.
    """
    x, cond = x[:2], take(without_noise(cond)[0], slice(0, 2))
    check_labels(objective, cond)
    check_weights(objective.net)
    average = objective.field == "average"
    net = Filled(objective.net)
    t = torch.full((len(x),), 0.7, device=x.device, dtype=x.dtype)
    r = torch.full_like(t, 0.3) if average else t
    exact = average and getattr(objective, "derivative", "exact") != "finite_difference"
    with evaluating(objective.net):
        for name in ("t", "r") if average else ("t",):
            check_time(net, x, t, r, cond, name, exact)


def check_labels(objective: Objective, cond: Cond) -> None:
    """Raise ValueError for class labels beyond the network's table, and for labels that it cannot take."""
    classes, cond = objective.null if isinstance(objective.null, int) else None, shown(cond)
    if classes is None or not isinstance(cond, Tensor) or cond.is_floating_point():
        return
    if int(cond.max()) > classes or int(cond.min()) < 0:
        raise ValueError(
            f"class labels must lie in [0, {classes}) for this network, got {int(cond.min())} to "
            f"{int(cond.max())}; build it with classes={int(cond.max()) + 1}"
        )


def check_weights(net: nn.Module) -> None:
    """Raise ValueError for a network whose weights are in half precision."""
    for name, p in net.named_parameters():
        if p.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"the parameter {name} is {p.dtype}: small updates are lost in it, and du/dt has errors of 50 % and "
                "more when the times are rounded. Keep the weights in float32 (net.float())"
            )


class Filled(nn.Module):
    """The network with noise in its parameters that are zero, or so small that they stand for zero."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.net = net
        self.fill = {
            name: (0.1 * torch.randn(p.shape, generator=generator)).to(p.device, p.dtype)
            for name, p in net.named_parameters()
            if not bool((p.abs() >= NEARLY_ZERO).any())
        }

    def forward(self, z: Tensor, *, t: Tensor, r: Tensor, cond: Cond = None) -> Tensor:
        try:
            return functional_call(self.net, self.fill, (z,), {"t": t, "r": r, "cond": cond})
        except TypeError as error:
            if "argument" not in str(error):
                raise
            raise ValueError(f"the network must take the call net(z, t=t, r=r, cond=cond): {error}") from error


def check_time(net: Filled, x: Tensor, t: Tensor, r: Tensor, cond: Cond, name: str, exact: bool) -> None:
    """The output must move with the time `name`, and its forward-mode derivative must see that."""
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    step = (torch.zeros_like(x), one if name == "t" else zero, one if name == "r" else zero)
    if name == "t" and bool((t == r).all()):
        step = (step[0], one, one)
    _, slope = central_difference(net, x, t, r, cond, step, width=0.05)
    if not bool(slope.any()):
        raise ValueError(
            f"the network's output does not depend on {name}: it is ignored, or rounded to an integer "
            f"(.long(), .int(), a lookup table). Feed {name}, a float in [0, 1], through a smooth embedding"
        )
    if exact and not bool(jvp(net, x, t, r, cond, step)[1].any()):
        raise ValueError(
            f"the network's output depends on {name}, but its derivative in {name} is exactly zero: {name} is "
            "detached, rounded or computed outside torch on the way. Remove the .detach(), .item() or .long()"
        )
