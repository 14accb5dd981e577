"""Exponential moving averages of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from .parallel import like_shards, local
from .profiles import exponent, power_decay


class EMA:
    """Averages of a module's parameters, one per decay, kept in float32; buffers are copied.

    Step n has the decay min(decay, (1 + n) / (10 + n)): early averages follow the weights, so that early samples are
    not the initial noise. warm=False takes the whole decay from the first step, as the authors' code does.
    every: the averages move on every so many steps, then with the decay to that power (authors' CIFAR code: 16).
    power: relative lengths of further averages, whose window grows with the run (arXiv:2312.02696, eq. 4); they are
    in `profiles`, and an average of any length can be rebuilt from them later.
    Under FSDP2 each process averages its own shards.
    """

    def __init__(
        self,
        module: nn.Module,
        decays: Sequence[float],
        every: int = 1,
        warm: bool = True,
        power: Sequence[float] = (),
    ) -> None:
        self.module, self.updates, self.every, self.warm = module, 0, every, warm
        self.averages = {decay: _copy(module) for decay in decays}
        self.profiles = {sigma: _copy(module) for sigma in power}

    @torch.no_grad()
    def update(self) -> None:
        """Take the module's present weights into every average, if this is a step on which they move."""
        self.updates += 1
        if self.updates % self.every:
            return
        now = self.module.state_dict()
        names = [n for n, _ in self.module.named_parameters(remove_duplicate=False)]
        for average, weight in self._moves():
            old = [local(average[n]) for n in names]
            torch._foreach_lerp_(old, [local(now[n]).to(o.dtype) for n, o in zip(names, old, strict=True)], weight)
            for name in now.keys() - set(names):
                average[name].copy_(now[name])

    def _moves(self) -> Iterator[tuple[dict[str, Tensor], float]]:
        """Every average, and the share of it that the present weights take."""
        for decay, average in self.averages.items():
            yield average, 1 - (warm_decay(decay, self.updates) if self.warm else decay) ** self.every
        for sigma, average in self.profiles.items():
            yield average, 1 - power_decay(exponent(sigma), self.updates, self.every)

    def load(self, averages: Sequence[dict[str, Tensor]]) -> None:
        """Restore all averages, then all profiles, from whole tensors, in the order in which they are kept."""
        for own, state in zip([*self.averages.values(), *self.profiles.values()], averages, strict=True):
            for name, value in own.items():
                local(value).copy_(local(like_shards(state[name], value)))


def warm_decay(decay: float, updates: int) -> float:
    """Decay of step number `updates` (from 1)."""
    return min(decay, (1 + updates) / (10 + updates))


def _copy(module: nn.Module) -> dict[str, Tensor]:
    # Averages in bfloat16 would lose every update that is smaller than the rounding step.
    return {
        name: value.detach().to(torch.promote_types(value.dtype, torch.float32), copy=True)
        if value.is_floating_point()
        else value.detach().clone()
        for name, value in module.state_dict().items()
    }
