"""What a run reports: metrics.jsonl, TensorBoard where it is installed, and a progress bar."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .checkpoint import write_text
from .settings import Training

SHOWN = ("mse_v", "mse_u", "dudt_ratio", "grad_norm")


class Log:
    """Collects the parts of every step on the device and writes their means at every interval.

    start: the step from which the run goes on. carried: what an earlier part of the run had collected.
    Raises FloatingPointError when a mean is not finite.
    """

    def __init__(self, folder: Path, settings: Training, start: int, carried: dict[str, Any]) -> None:
        self.settings, self.file = settings, folder / "metrics.jsonl"
        seen = start * settings.batch
        _forget_after(self.file, seen)
        self.sums = {name: torch.tensor(value) for name, value in carried.get("sums", {}).items()}
        self.counts: dict[str, int] = dict(carried.get("counts", {}))
        self.board = _tensorboard(folder / "tensorboard", seen)
        self.bar = tqdm(
            total=settings.images,
            initial=min(seen, settings.images),
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )
        self.seen, self.since = seen, time.perf_counter()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        if self.board is not None:
            self.board.close()

    def carried(self) -> dict[str, Any]:
        """What has been collected since the last record, JSON-able."""
        return {"sums": {name: float(value) for name, value in self.sums.items()}, "counts": self.counts}

    def step(self, step: int, parts: dict[str, Tensor], lr: float) -> None:
        """Take in the parts of step number `step` (from 1)."""
        for name, value in parts.items():
            self.sums[name] = self.sums[name].to(value.device) + value if name in self.sums else value.clone()
            self.counts[name] = self.counts.get(name, 0) + 1
        self.bar.update(min(self.settings.batch, self.settings.images - self.bar.n))
        if self.settings.due(step, self.settings.log_every):
            self._write(step, lr)

    def _write(self, step: int, lr: float) -> None:
        means = {name: float(value) / self.counts[name] for name, value in self.sums.items()}
        self.sums, self.counts = {}, {}
        images, now = step * self.settings.batch, time.perf_counter()
        speed = (images - self.seen) / max(now - self.since, 1e-9)
        self.seen, self.since = images, now
        rounded = {name: float(f"{value:.6g}") for name, value in means.items()}
        record = {"step": step, "images": images, **rounded, "lr": lr, "images_per_second": round(speed, 1)}
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._show(images, means, speed)
        if self.board is not None:
            for name, value in {**means, "lr": lr, "images_per_second": speed}.items():
                self.board.add_scalar(name, value, images)
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(
                f"{', '.join(bad)} not finite after {images} images; the last checkpoint is untouched. "
                "Lower the learning rate, or look for extreme values in the data"
            )

    def _show(self, images: int, means: dict[str, float], speed: float) -> None:
        """The raw parts on the progress bar, or on a line of their own where there is no terminal."""
        parts = {name: f"{means[name]:.3g}" for name in SHOWN if name in means}
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


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a line cut off by a crash is left out."""
    file = folder / "metrics.jsonl"
    records = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def _forget_after(file: Path, images: int) -> None:
    """Drop records newer than the checkpoint that the run goes on from."""
    kept = [r for r in read_metrics(file.parent) if r["images"] <= images]
    write_text(file, "".join(json.dumps(r) + "\n" for r in kept))


def _tensorboard(folder: Path, start: int) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=start)
