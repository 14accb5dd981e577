"""One optimiser step: micro-batches, synchronisation, clipping, and leaving out what is not finite."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core.conditions import map_cond
from ..data import augmentation, mix_seed
from ..data.prefetch import Batch
from ..objectives import Objective
from .parallel import World, full, synchronising
from .settings import Training

# Steps of each process in which the gradient norms are compared: some ways past the wrapper show in the second only.
COMPARED = 2


class Stepper:
    """Does optimiser steps; `streak` counts those in a row that were left out.

    module: the objective in its wrapper. A step whose gradient is not finite changes neither weights nor moments; the
    optimiser's own kernel leaves it out, told by a number on the device, so that nothing waits for the device.
    """

    def __init__(
        self, objective: Objective, module: nn.Module, s: Training, world: World, device: torch.device
    ) -> None:
        self.module, self.settings, self.world, self.device = module, s, world, device
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[s.optimizer]
        # The fused kernels are those that can leave a step out by themselves (their argument found_inf).
        self.optimizer = kind(objective.parameters(), lr=s.lr, betas=s.betas, weight_decay=s.weight_decay, fused=True)
        self.augment = augmentation(s.augment)
        self.generator, self.streak, self.done = torch.Generator(device), Streak(device), 0

    def __call__(self, step: int, batches: Sequence[Batch], lr: float) -> tuple[dict[str, Tensor], Tensor]:
        """Do step number `step` (from 0).

        Returns the raw parts of the loss with the gradient norm before clipping, and whether the step was left out
        (0-dim, on the device).
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        parts = [self._backward(step, number, batches) for number in range(len(batches))]
        limit = math.inf if self.settings.clip is None else self.settings.clip
        norm = full(nn.utils.clip_grad_norm_(self.parameters, limit))
        if self.done < COMPARED and self.world.size > 1:
            self.world.same(float(norm))
        self.done += 1
        bad = ~norm.isfinite()
        self.optimizer.found_inf = bad.float()
        self.optimizer.step()
        self.streak.add(step, bad)
        return {**_mean(parts), "grad_norm": norm}, bad

    def _backward(self, step: int, number: int, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Forward and backward of one micro-batch."""
        x, cond = to_device(batches[number], self.device)
        seed_slice(self.generator, self.settings.seed, step, number * self.world.size + self.world.rank)
        with synchronising(self.module, last=number == len(batches) - 1):
            x, cond = self.augment(x, cond, self.generator)
            loss, parts, _ = self.module(x, cond, generator=self.generator)
            (loss / len(batches)).backward()
        return {"loss": loss.detach(), **parts}


def seed_slice(generator: torch.Generator, seed: int, step: int, slice_: int) -> None:
    """Seed every draw of one slice of a step's batch: times and noise from `generator`, dropout from torch's own.

    All follows from (seed, step, slice), so a resumed run needs no generator's state, and the same slices draw the same
    whichever process works on them.
    """
    generator.manual_seed(mix_seed(seed, step, 2 * slice_) if slice_ else mix_seed(seed, step))
    torch.manual_seed(mix_seed(seed, step, 2 * slice_ + 1))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch on the device."""
    x, cond = batch
    return x.to(device), map_cond(lambda c: c.to(device), cond)


class Streak:
    """Counts the steps in a row that were left out, on the device; the host learns of it without waiting."""

    def __init__(self, device: torch.device) -> None:
        self.count = torch.zeros((), device=device)
        self.last = torch.full((), -1, dtype=torch.int64, device=device)
        self._ahead: deque[tuple[Tensor, torch.cuda.Event]] = deque()
        self._known = 0

    def add(self, step: int, bad: Tensor) -> None:
        """Take in whether step number `step` was left out."""
        self.count = (self.count + 1) * bad
        self.last = torch.where(bad, step, self.last)
        if self.count.device.type != "cuda":
            self._known = int(self.count)
            return
        # A copy to pinned memory with an event behind it: read once the device has passed the event.
        host = torch.empty((), pin_memory=True).copy_(self.count, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._ahead.append((host, event))

    def known(self) -> int:
        """The count as of the newest step that the device is known to have done."""
        while self._ahead and self._ahead[0][1].query():
            self._known = int(self._ahead.popleft()[0])
        return self._known


def _mean(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Means over the micro-batches that have a part."""
    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys(name for p in parts for name in p)
    return {name: torch.stack([p[name] for p in parts if name in p]).mean() for name in names}
