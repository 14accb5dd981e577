"""The training loop."""

from __future__ import annotations

import math
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.conditions import Cond, map_cond
from ..core.sampling import EulerField, noise_from_seeds, sample
from ..data import Dataset, EDMAugment, augmentation, batches, check_scale, mix_seed, open_data
from ..evaluation.pictures import picture, save_picture
from ..objectives import Objective, check_network
from .ema import EMA
from .log import Log
from .previews import decoder
from .run import describe, open_run, pick_device, resume, save_state
from .settings import Training, settings
from .signals import StopSignal


@dataclass(frozen=True)
class Run:
    """A run that was trained: its folder, the images it has seen, and the signal that stopped it early, if any."""

    folder: Path
    images: int
    stopped: str | None = None


def fit(
    objective: Objective,
    data: Any,
    *,
    out: str | Path,
    training: Training | None = None,
    **options: Any,
) -> Run:
    """Train an objective on data and keep everything in the folder `out`; the same call again resumes.

    data: a Dataset, a tensor, a pair (x, cond), or what open_data takes. training, options: see Training,
    e.g. images=400_000, batch=128, lr=1e-3.
    Raises ValueError before anything is written when network, data or settings do not fit, and when `out`
    holds another run.
    """
    s = settings(training, options)
    folder, dataset, device = Path(out), open_data(data), pick_device(s.device)
    objective.to(device).train()
    _check(objective, dataset, device, s.augment)
    check_scale(dataset)
    if s.compile:
        objective.compile()
    open_run(folder, describe(objective, dataset, s))
    if objective.weighting.p == 1:
        note = "with p = 1 the weighted loss is about 1 by construction; watch mse_v (r = t rows) and mse_u"
        print(f"note: {note}", file=sys.stderr)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        return _train(objective, dataset, folder, s, device)


def _train(objective: Objective, data: Dataset, folder: Path, s: Training, device: torch.device) -> Run:
    optimizer, ema = _optimizer(objective, s), EMA(objective, s.ema, s.ema_every, s.ema_start == "warm")
    step, carried = resume(folder, objective, optimizer, ema)
    if step > 0:
        state = "nothing to do" if step >= s.steps else "going on"
        print(f"{folder} has seen {min(step * s.batch, s.images):,} of {s.images:,} images: {state}", file=sys.stderr)
    augment = augmentation(s.augment)
    generator, log = torch.Generator(device), Log(folder, s, step, carried)
    decode = decoder(data, device) if step < s.steps else None
    with (
        StopSignal() as stop,
        log,
        closing(batches(data, s.batch, seed=s.seed, start=step * s.batch)) as stream,
    ):
        while step < s.steps:
            x, cond = next(stream)
            # Every draw of a step follows from (seed, step): a resumed run needs no generator's state.
            generator.manual_seed(mix_seed(s.seed, step))
            torch.manual_seed(mix_seed(s.seed, step, 1))
            lr = learning_rate(s, step)
            x, cond = augment(x.to(device), _to(cond, device), generator)
            parts = _step(objective, optimizer, x, cond, generator, lr, s.clip)
            ema.update()
            step += 1
            log.step(step, parts, lr)
            if decode is not None and s.due(step, s.grid_every):
                x = decode(_draw_grid(objective, ema, data, device))
                save_picture(picture(x, _columns(data)), folder / "grids" / f"{step * s.batch:012d}.png")
            if s.due(step, s.save_every) or stop.received:
                save_state(folder, objective, optimizer, ema, step, s, log.carried())
            if stop.received:
                break
    images = min(step * s.batch, s.images)
    return Run(folder, images, stop.received.name if stop.received and step < s.steps else None)


def _step(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    cond: Cond,
    generator: torch.Generator,
    lr: float,
    clip: float | None,
) -> dict[str, Tensor]:
    """One optimiser step; the raw parts of the loss and the gradient norm before clipping."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss, parts, _ = objective(x, cond, generator=generator)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), math.inf if clip is None else clip)
    optimizer.step()
    return {"loss": loss.detach(), "grad_norm": norm, **parts}


def learning_rate(s: Training, step: int) -> float:
    """Learning rate of step number `step` (from 0)."""
    seen = step * s.batch
    if seen < s.warmup:
        return s.lr * (seen + s.batch) / (s.warmup + s.batch)
    if s.schedule == "constant":
        return s.lr
    progress = (seen - s.warmup) / max(s.images - s.warmup, 1)
    return s.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def _optimizer(objective: Objective, s: Training) -> torch.optim.Optimizer:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[s.optimizer]
    return kind(objective.parameters(), lr=s.lr, betas=s.betas, weight_decay=s.weight_decay)


def _check(objective: Objective, data: Dataset, device: torch.device, augment: str) -> None:
    """Everything that can be known before the first step."""
    if augment != "none" and len(data.shape) != 3:
        raise ValueError(f"augment={augment!r} is for images, the data have samples of shape {tuple(data.shape)}")
    if augment == "edm" and not getattr(objective.net, "augment_features", None):
        raise ValueError(
            "augment='edm' changes images in ways that samples must not show, so it tells the network what it did: "
            f"build the network with augment_features={EDMAugment().features} (UNet), or use augment='flip'"
        )
    shape = getattr(objective.net, "shape", None)
    if shape is not None and tuple(shape) != tuple(data.shape):
        raise ValueError(
            f"the data have samples of shape {tuple(data.shape)}, the network takes {tuple(shape)}; "
            f"build the network with shape={tuple(data.shape)}"
        )
    if isinstance(objective.null, int) and data.classes is not None and data.classes > objective.null:
        raise ValueError(
            f"the data have {data.classes} classes, the network {objective.null}; build it with classes={data.classes}"
        )
    x, cond = data.batch([0, min(1, len(data) - 1)])
    if cond is None and getattr(objective, "guidance", None) is not None:
        raise ValueError("guidance needs conditions, but the data have no labels; use guidance=None")
    check_network(objective, x.to(device), _to(cond, device))


def _to(cond: Cond, device: torch.device) -> Cond:
    return map_cond(lambda c: c.to(device), cond)


def _draw_grid(objective: Objective, ema: EMA, data: Dataset, device: torch.device) -> Tensor:
    """One-call samples (Euler for flow matching) from fixed noise, drawn with the first average."""
    rows = 4 if hasattr(data, "latents") else 8  # decoding costs more than drawing
    count = rows * _columns(data) if len(data.shape) == 3 else 2000
    noise = noise_from_seeds(range(count), data.shape, device)
    cond = _to(_grid_cond(data, count), device)
    average = next(iter(ema.averages.values()))
    raw = {name: value.clone() for name, value in objective.state_dict().items()}
    objective.load_state_dict(average)
    try:
        field = EulerField(objective.net) if objective.field == "instantaneous" else objective.net
        return sample(field, noise, cond, steps=16 if objective.field == "instantaneous" else 1)
    finally:
        objective.load_state_dict(raw)


def _columns(data: Dataset) -> int:
    return data.classes if data.classes and data.classes <= 16 else 8


def _grid_cond(data: Dataset, count: int) -> Cond:
    """Classes in turn, or the conditions of the first samples."""
    if data.classes is not None:
        return torch.arange(count) % data.classes
    return data.batch([i % len(data) for i in range(count)])[1]
