"""Judging a run on tiny images: pixels as features, the held-out part as reference."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.sampling import noise_from_seeds, sample
from ..data import Dataset, digits
from .classifier import KernelClassifier
from .distances import Gaussian, frechet_distance, nearest_distances


@dataclass(frozen=True)
class Row:
    """What one run reaches with `steps` network calls per sample."""

    run: str
    steps: int
    frechet: float
    """Frechet distance of pixels to the held-out images."""
    floor: float
    """The same for the training images: what a perfect copy of their distribution reaches."""
    agreement: float
    """Share of samples that a classifier recognises as the asked class."""
    nearest: float
    """Median distance of a sample to its nearest training image."""
    nearest_held_out: float
    """The same for held-out images: samples much nearer than that are copies."""


class DigitsJudge:
    """Reference, classifier and floor for the embedded digits, prepared once."""

    def __init__(self) -> None:
        (self.train, labels), (held, held_labels) = (_all(digits(split)) for split in ("train", "held_out"))
        self.reference = Gaussian.of(held)
        self.floor = frechet_distance(Gaussian.of(self.train), self.reference)
        self.classifier = KernelClassifier(self.train, labels, 10)
        self.accuracy = float((self.classifier(held) == held_labels).double().mean())
        self.nearest_held_out = float(nearest_distances(held, self.train).median())

    def row(self, run: str, steps: int, x: Tensor, labels: Tensor) -> Row:
        """Figures for samples x [N, 1, 8, 8] that were asked to be of the classes labels [N]."""
        flat = x.flatten(1).float().cpu()
        return Row(
            run=run,
            steps=steps,
            frechet=frechet_distance(Gaussian.of(flat), self.reference),
            floor=self.floor,
            agreement=float((self.classifier(flat) == labels).double().mean()),
            nearest=float(nearest_distances(flat, self.train).median()),
            nearest_held_out=self.nearest_held_out,
        )


def draw(
    net: nn.Module, n: int, steps: int, *, classes: int, first_seed: int = 0, batch: int = 500
) -> tuple[Tensor, Tensor]:
    """n samples with balanced classes, sample i from seed first_seed + i; x [n, *shape] and labels [n]."""
    device = next(net.parameters()).device
    labels = torch.arange(n) % classes
    parts = []
    for start in range(0, n, batch):
        rows = range(start, min(start + batch, n))
        noise = noise_from_seeds((first_seed + i for i in rows), net.shape, device)  # type: ignore[arg-type]
        parts.append(sample(net, noise, labels[rows.start : rows.stop].to(device), steps=steps).cpu())
    return torch.cat(parts), labels


def evaluate_digits(
    nets: dict[str, nn.Module], steps: list[int], *, samples: int = 2000, first_seed: int = 1_000_000
) -> dict[str, Any]:
    """Rows for every net and number of calls, with the protocol they follow; JSON-able.

    The seeds start at a million: no sample is one of the grids that training shows.
    """
    judge = DigitsJudge()
    rows = []
    for name, net in nets.items():
        for n in steps:
            x, labels = draw(net, samples, n, classes=10, first_seed=first_seed)
            rows.append(asdict(judge.row(name, n, x, labels)))
    return {
        "protocol": {
            "name": "digits",
            "features": "64 pixels in [-1, 1]",
            "reference": f"{len(digits('held_out'))} held-out images",
            "samples": samples,
            "labels": "balanced",
            "first_seed": first_seed,
            "classifier": "Gaussian-kernel ridge regression on the training images",
            "classifier_accuracy_held_out": judge.accuracy,
        },
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    """The rows as an aligned text table with the protocol under it."""
    head = ("run", "calls", "Frechet", "floor", "agreement", "nearest train", "held-out")
    lines = [head] + [
        (
            Path(r["run"]).name,
            str(r["steps"]),
            f"{r['frechet']:.3f}",
            f"{r['floor']:.3f}",
            f"{r['agreement']:.3f}",
            f"{r['nearest']:.3f}",
            f"{r['nearest_held_out']:.3f}",
        )
        for r in result["rows"]
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    p = result["protocol"]
    return "\n".join(
        [
            *text,
            "",
            (
                f"protocol {p['name']}: {p['samples']} samples, {p['labels']} labels, {p['features']}, against "
                f"{p['reference']}; classifier right on {p['classifier_accuracy_held_out']:.1%} of them"
            ),
        ]
    )


def _all(data: Dataset) -> tuple[Tensor, Tensor]:
    x, labels = data.batch(range(len(data)))
    assert isinstance(labels, Tensor)
    return x.flatten(1), labels
