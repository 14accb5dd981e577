"""Whether what a recipe asks for can fit into memory, told before any of it is taken."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ..training.run import pick_device
from .config import NetSettings, Recipe, net_for
from .cost import cost, spelled_out

DEPTH = 10_000  # our choice: blocks beyond this are a slip of the finger, and would take minutes to build
# Weights, gradients and two moments, in float32; averages come on top.
COPIES = 4
# x, e, z, v, u and the target of every row, which a step holds whatever the network.
ROWS = 6
EXACTLY_FROM = 1 / 64  # share of the memory from which on activations are counted, which takes a second; our choice


def check_room(
    recipe: Recipe, shape: tuple[int, ...], conditions: Mapping[str, Any], classes: int | None, taken: bool = True
) -> None:
    """ValueError with an estimate where weights, averages and a batch cannot fit into the memory of the device.

    A lower bound for small ones, so that it costs nothing; activations are counted where the batch is large.
    """
    parameters = _parameters(recipe.net, partial(net_for, shape=shape, conditions=conditions, told=_told(recipe)))
    if not taken:
        return
    training, device = recipe.training, pick_device(recipe.training.device)
    there = memory_of(device)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    states: float = 4 * parameters * (COPIES + len(training.ema)) / (processes if training.parallel == "fsdp" else 1)
    rows = training.batch // (processes * training.accumulate)
    numbers = rows * torch.Size(shape).numel()
    needed: float = states + 4 * ROWS * numbers
    if there * EXACTLY_FROM < needed < there:
        needed = states + cost(recipe, shape, classes).activations * rows
    if needed > there:
        raise ValueError(
            f"a network of {parameters:,} parameters and a batch of {training.batch:,} need about "
            f"{needed / 2**30:,.1f} GiB, {device} has {there / 2**30:,.1f} GiB; choose a smaller --net.width, "
            "--net.depth or --batch, or more --accumulate; --dry-run says what a choice would need"
        )


def memory_of(device: torch.device) -> int:
    """Bytes of memory of a device; of the CPU, those of the machine or of what it is limited to."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:  # of a container; cgroup v2
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            return min(there, int(file.read()))
    except (OSError, ValueError):
        return there


def _told(recipe: Recipe) -> bool:
    return recipe.training.augment == "edm"


def _parameters(net: NetSettings, make: Callable[[NetSettings], nn.Module]) -> int:
    """Parameters of a network, from those with one block and with two: every block has the same."""
    net = spelled_out(net)
    if net.depth > DEPTH:
        raise ValueError(f"net.depth must be at most {DEPTH:,} blocks, got {net.depth:,}")
    one, two = (_on_meta(replace(net, depth=min(depth, net.depth)), make) for depth in (1, 2))
    return one + max(net.depth - 1, 0) * (two - one)


def _on_meta(net: NetSettings, make: Callable[[NetSettings], nn.Module]) -> int:
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in make(net).parameters())
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes beyond 64 bits, which torch tells in many ways
        raise ValueError(
            f"no machine has room for a network of these settings (net.width {net.width:,}, net.depth {net.depth:,}: "
            f"{str(error).splitlines()[0][:200]})"
        ) from error
