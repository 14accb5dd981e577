"""Sample grids while training, drawn with the first average, the work shared by all processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ..core.conditions import Cond, map_cond, take, without_noise
from ..core.sampling import EulerField, noise_from_seeds, sample
from ..data import Dataset
from ..evaluation.pictures import picture, save_picture
from ..objectives import Objective
from .ema import EMA
from .parallel import World, local, whole


def save_grid(
    objective: Objective,
    ema: EMA,
    data: Dataset,
    folder: Path,
    images: int,
    device: torch.device,
    world: World,
    decode: Callable[[Tensor], Tensor] | None,
) -> None:
    """One-call samples (Euler for flow matching) from fixed noise; rank 0 makes them drawable with `decode`."""
    columns = data.classes if data.classes and data.classes <= 16 else 8
    rows = 4 if hasattr(data, "latents") else 8  # decoding costs more than drawing
    count = rows * columns if len(data.shape) == 3 else 2000
    with averaged(objective, ema), whole(objective):
        mine = _samples(objective, shares(count, world), _grid_cond(data, count), data.shape, device)
    parts = world.gather(mine)
    if decode is not None:
        x = decode(torch.stack(parts, dim=1).flatten(0, 1)[:count].to(device))
        save_picture(picture(x, columns), folder / "grids" / f"{images:012d}.png")


def shares(count: int, world: World) -> list[int]:
    """Numbers of the samples that this process draws, the same many in each: the last are drawn twice if need be."""
    each = math.ceil(count / world.size)
    return [min(i * world.size + world.rank, count - 1) for i in range(each)]


@contextmanager
def averaged(objective: Objective, ema: EMA) -> Iterator[None]:
    """The objective holds the first average inside, and its own weights again afterwards."""
    average = next(iter(ema.averages.values()))
    here = {name: local(value) for name, value in objective.state_dict().items()}
    raw = {name: value.clone() for name, value in here.items()}
    _copy_into(here, {name: local(value) for name, value in average.items()})
    try:
        yield
    finally:
        _copy_into(here, raw)


@torch.no_grad()
def _copy_into(targets: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, target in targets.items():
        target.copy_(values[name])


def _samples(
    objective: Objective, numbers: list[int], cond: Cond, shape: tuple[int, ...], device: torch.device
) -> Tensor:
    dtype = next(objective.parameters()).dtype
    rows, noise = without_noise(take(cond, torch.tensor(numbers)))
    if noise is None:
        noise = noise_from_seeds(numbers, shape, source=objective.source, cond=rows)
    rows, noise = map_cond(lambda c: c.to(device), rows), noise.to(device, dtype)
    flow = objective.field == "instantaneous"
    return sample(EulerField(objective.net) if flow else objective.net, noise, rows, steps=16 if flow else 1).cpu()


def _grid_cond(data: Dataset, count: int) -> Cond:
    """Classes in turn where they are all there is, else the conditions of the first samples."""
    if data.classes is not None and isinstance(data.batch([0])[1], Tensor):
        return torch.arange(count) % data.classes
    return data.batch([i % len(data) for i in range(count)])[1]
