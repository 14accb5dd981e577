"""How well the device is used: FLOPs that the model asks for, and the rate at which the device multiplies matrices."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

from ..bench import flops
from ..data import Dataset
from ..objectives import Objective
from .step import to_device

# Sides of the matrices whose product gives the rate: large enough for the device to reach it. Our choice.
SIDE = {"cpu": 512, "cuda": 4096}
ROWS = 8  # FLOPs grow with the rows, so a few tell; our choice


def flops_per_image(objective: Objective, data: Dataset, device: torch.device) -> float | None:
    """FLOPs of a training step per row, forward and backward; None where torch cannot count them."""
    x, cond = to_device(data.batch([i % len(data) for i in range(ROWS)]), device)
    buffers = [(buffer, buffer.clone()) for buffer in objective.buffers()]
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            count = flops(lambda: objective(x, cond).loss.backward())
    except RuntimeError:
        return None
    finally:
        objective.zero_grad(set_to_none=True)
        for buffer, before in buffers:  # running statistics must not see these rows
            buffer.copy_(before)
    return count / ROWS


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of a square matrix product, the best of three."""
    side = SIDE.get(device.type, SIDE["cuda"])
    a = torch.ones(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):  # the first one warms up
        wait(device)
        start = time.perf_counter()
        torch.mm(a, a)
        wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def memory_gib(device: torch.device) -> float:
    """Most memory that was in use so far: of the GPU, or of the process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Yardstick:
    """What a speed is measured against: FLOPs per image over the device's rate; per_image None is unknown."""

    def __init__(self, objective: Objective, data: Dataset, device: torch.device) -> None:
        self.device = device
        self.per_image = flops_per_image(objective, data, device)
        self.rate = matrix_rate(device, torch.bfloat16 if objective.precision == "bf16" else torch.float32)

    def values(self, images_per_second: float, processes: int) -> dict[str, Any]:
        """Utilisation in [0, 1], if known, and memory of this process in GiB."""
        found: dict[str, Any] = {"memory_gib": round(memory_gib(self.device), 3)}
        if self.per_image is not None:
            used = images_per_second * self.per_image / (self.rate * processes)
            found["utilisation"] = float(f"{used:.3g}")
        return found
