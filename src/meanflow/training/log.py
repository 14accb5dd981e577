"""What a run reports: metrics.jsonl, other loggers, and a progress bar."""

from __future__ import annotations

import json
import math
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.files import write_text
from .loggers import Logger, open_loggers
from .parallel import World
from .settings import Training
from .speed import Yardstick

SHOWN = ("mse_v", "mse_u", "dudt_ratio", "grad_norm")
# Values that depend on the machine and the moment, and so differ between runs that are otherwise equal.
VARYING = ("images_per_second", "seconds_left", "memory_gib", "utilisation")


class Log:
    """Collects the parts of every step on the device and writes their means at every interval.

    start: the step from which the run goes on. carried: what an earlier part of the run had collected in this process.
    The device is asked only when a record is due. Raises FloatingPointError when a mean is not finite.
    """

    def __init__(
        self,
        folder: Path,
        settings: Training,
        start: int,
        carried: dict[str, Any] | None,
        yardstick: Yardstick,
        world: World | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        self.settings, self.file = settings, folder / "metrics.jsonl"
        self.yardstick, self.world = yardstick, world or World()
        self.sums = Sums(yardstick.device, carried)
        seen = start * settings.batch
        self.loggers: list[Logger] = []
        if self.world.first:
            before = forget_after(self.file, seen)
            self.loggers = open_loggers(settings.loggers, folder, before, config or {})
        self.bar = tqdm(
            total=settings.images,
            initial=min(seen, settings.images),
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not (self.world.first and sys.stderr.isatty()),
        )
        self.seen, self.since = seen, time.perf_counter()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self.bar.close()
        for logger in self.loggers:
            with suppress(OSError):  # the disk may be full: what is being raised says more
                logger.close()

    def carried(self) -> dict[str, Any]:
        """What has been collected in this process since the last record, JSON-able."""
        return self.sums.plain()

    def step(self, step: int, parts: dict[str, Tensor], lr: float, bad: Tensor) -> None:
        """Take in the parts of step number `step` (from 1); bad: whether the step was left out (0-dim)."""
        self.sums.add(parts, bad)
        with suppress(OSError):
            self.bar.update(min(self.settings.batch, self.settings.images - self.bar.n))
        if self.settings.due(step, self.settings.log_every):
            self._write(step, lr)

    def _write(self, step: int, lr: float) -> None:
        means, skipped = merged(self.world.gather(self.sums.plain()))
        self.sums.clear()
        images, now = step * self.settings.batch, time.perf_counter()
        speed = (images - self.seen) / max(now - self.since, 1e-9)
        self.seen, self.since = images, now
        if self.world.first:
            rounded = {name: float(f"{value:.6g}") for name, value in means.items()}
            left = max(self.settings.images - images, 0) / speed
            varying = {"images_per_second": round(speed, 1), "seconds_left": round(left, 1)}
            varying |= self.yardstick.values(speed, self.world.size)
            record = {"step": step, "images": images, **rounded, "lr": lr, "skipped": skipped, **varying}
            self._keep(record)
            with suppress(OSError):  # the terminal may be gone; the training is not
                self._show(images, means, speed, skipped)
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(
                f"{', '.join(bad)} not finite after {images} images; the last checkpoint is untouched. "
                "Lower the learning rate, or look for extreme values in the data"
            )

    def _keep(self, record: dict[str, Any]) -> None:
        try:
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            for logger in self.loggers:
                logger.record(record)
        except OSError as error:
            raise OSError(
                f"could not write the metrics in {self.file.parent}: {error}. The checkpoints are whole; mend this and "
                "give the same command again to go on"
            ) from error

    def _show(self, images: int, means: dict[str, float], speed: float, skipped: int) -> None:
        """The raw parts on the progress bar, or on a line of their own where there is no terminal."""
        parts = {name: f"{means[name]:.3g}" for name in SHOWN if name in means}
        if skipped:
            parts["steps skipped"] = str(skipped)
        self.bar.set_postfix(parts)
        if self.bar.disable:
            left = tqdm.format_interval(max(self.settings.images - images, 0) / speed)
            text = ", ".join(f"{name} {value}" for name, value in parts.items())
            print(
                f"{min(images, self.settings.images):,}/{self.settings.images:,} images, {speed:.0f} img/s, "
                f"{left} left, {text}",
                file=sys.stderr,
                flush=True,
            )


class Sums:
    """Sums of the parts of steps, on the device, without those of steps that were left out.

    Steps with the same parts share one vector and one count, so that a step costs a few small kernels.
    """

    def __init__(self, device: torch.device, carried: dict[str, Any] | None) -> None:
        self.device = device
        self.groups: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}
        self.skipped = torch.zeros((), device=device)
        for names, sums, count in (carried or {}).get("groups", []):
            old = self.groups.get(tuple(names), (0, 0))
            self.groups[tuple(names)] = (old[0] + self._tensor(sums), old[1] + self._tensor(count))
        if carried:
            self.skipped += carried["skipped"]

    def add(self, parts: dict[str, Tensor], bad: Tensor) -> None:
        """Take in one step."""
        names = tuple(parts)
        values = torch.stack([value.to(self.device, torch.float32) for value in parts.values()])
        sums, count = self.groups.get(names, (torch.zeros_like(values), torch.zeros((), device=self.device)))
        # A choice and not a product: 0 times NaN is NaN.
        self.groups[names] = (sums + torch.where(bad, 0.0, values), count + ~bad)
        self.skipped = self.skipped + bad

    def clear(self) -> None:
        """Begin anew; steps that were left out are counted from the beginning of the run."""
        self.groups = {}

    def plain(self) -> dict[str, Any]:
        """Everything as numbers, JSON-able; waits for the device."""
        groups = [[list(names), sums.tolist(), count.item()] for names, (sums, count) in self.groups.items()]
        return {"groups": groups, "skipped": int(self.skipped)}

    def _tensor(self, value: Any) -> Tensor:
        return torch.tensor(value, device=self.device, dtype=torch.float32)


def merged(gathered: list[dict[str, Any]]) -> tuple[dict[str, float], int]:
    """Means over the steps of all processes, and the number of steps left out (the same in each process)."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for names, values, count in (group for one in gathered for group in one["groups"]):
        for name, value in zip(names, values, strict=True):
            sums[name], counts[name] = sums.get(name, 0.0) + value, counts.get(name, 0.0) + count
    return {name: value / counts[name] for name, value in sums.items() if counts[name]}, gathered[0]["skipped"]


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a line cut off by a crash is left out."""
    file = folder / "metrics.jsonl"
    records = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("images"), int):
            records.append(record)
    return records


def forget_after(file: Path, images: int) -> list[dict[str, Any]]:
    """Drop records newer than the checkpoint that the run goes on from, and return the others."""
    kept = [r for r in read_metrics(file.parent) if r["images"] <= images]
    write_text(file, "".join(json.dumps(r) + "\n" for r in kept))
    return kept
