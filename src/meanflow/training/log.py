"""What a run reports: metrics.jsonl, TensorBoard where it is installed, and a progress bar."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .checkpoint import write_text

SHOWN = ("mse_v", "mse_u", "dudt_ratio", "grad_norm")


class Log:
    """Collects the parts of every step on the device and writes their means every `every` images."""

    def __init__(self, folder: Path, *, images: int, start: int, every: int, batch: int) -> None:
        self.file = folder / "metrics.jsonl"
        _forget_after(self.file, start)
        self.every, self.batch, self.next = every, batch, start + every
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.board = _tensorboard(folder / "tensorboard", start)
        self.bar = tqdm(
            total=images, initial=start, unit="img", unit_scale=True, smoothing=0.1, dynamic_ncols=True
        )
        self.seen, self.since = start, time.perf_counter()

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        if self.board is not None:
            self.board.close()

    def step(self, images: int, parts: dict[str, Tensor], lr: float) -> None:
        """Take in one step that ended at `images` seen; raises FloatingPointError when a mean is not finite."""
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        self.bar.update(min(images, self.bar.total) - self.bar.n)
        if images >= self.next or images >= self.bar.total:
            self._write(images, lr)
            self.next += self.every

    def _write(self, images: int, lr: float) -> None:
        means = {name: float(value) / self.counts[name] for name, value in self.sums.items()}
        self.sums, self.counts = {}, {}
        now = time.perf_counter()
        speed = (images - self.seen) / max(now - self.since, 1e-9)
        self.seen, self.since = images, now
        record = {
            "step": images // self.batch,
            "images": images,
            **{name: float(f"{value:.6g}") for name, value in means.items()},
            "lr": lr,
            "images_per_second": round(speed, 1),
        }
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.bar.set_postfix({k: f"{means[k]:.3g}" for k in SHOWN if k in means})
        if self.board is not None:
            for name, value in {**means, "lr": lr, "images_per_second": speed}.items():
                self.board.add_scalar(name, value, images)
        bad = [name for name, value in means.items() if value - value != 0]
        if bad:
            raise FloatingPointError(
                f"{', '.join(bad)} not finite after {images} images; the last checkpoint is untouched. "
                "Lower the learning rate, or look for extreme values in the data"
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
