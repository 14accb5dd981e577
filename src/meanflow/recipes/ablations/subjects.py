"""What the ablations can be repeated on: data, a base recipe, and a judge of one-call samples."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.guidance import Guidance
from ...data import Dataset, digits
from ...evaluation import Gaussian, Judge, frechet_distance
from ...evaluation.classifier import KernelClassifier
from ...training import Training
from ..config import NetSettings, ObjectiveSettings, Recipe
from .idx import FILES, read_idx_folder


@dataclass(frozen=True)
class Score:
    """Frechet distance to held-out images, and the share of samples recognised as the asked class."""

    frechet: float
    agreement: float


class Subject(Protocol):
    """Data with a base recipe and a judge."""

    title: str
    protocol: str
    base: Recipe
    data: Dataset

    @property
    def floor(self) -> float:
        """The distance that the training images themselves reach."""

    def score(self, x: Tensor, labels: Tensor) -> Score:
        """Judge samples x [N, *shape] that were asked to be of the classes labels [N]."""


class Digits:
    """The embedded handwritten digits, judged as `meanflow evaluate` does."""

    title = "handwritten digits, 8x8"
    protocol = "Frechet distance of the 64 pixels to 359 held-out images (not FID)"
    # Width, depth and learning rate of the recipe digits-unguided; tokens of 4x4 pixels instead of 2x2 make a step
    # two and a half times cheaper. No clipping, as in the paper: it would act on small powers p only.
    base = Recipe(
        net=NetSettings(patch=4, width=96, depth=3, heads=4),
        objective=ObjectiveSettings(guidance=Guidance.from_paper(1.0)),
        training=Training(images=32_000, batch=128, lr=2e-3, clip=None),
    )

    def __init__(self) -> None:
        self.data: Dataset = digits("train")

    @cached_property
    def _judge(self) -> Judge:
        # A study also holds settings that fail; a network that ignores its noise still gets its figure.
        return Judge("digits", allow=("duplicates", "belief"))

    @property
    def floor(self) -> float:
        """The distance that the training images themselves reach."""
        return self._judge.floor["frechet"]

    def score(self, x: Tensor, labels: Tensor) -> Score:
        """Judge samples x [N, 1, 8, 8] that were asked to be of the classes labels [N]."""
        metrics = self._judge.images(x, labels, from_files=False).metrics
        return Score(metrics["frechet"], metrics["agreement"])


class IdxImages:
    """Grey images 28x28 from a folder with the four files of MNIST, in which Fashion-MNIST comes too.

    Judged on 49 features, the means of 4x4 pixels: enough to rank runs of one study, comparable with nothing else.
    """

    protocol = "Frechet distance of 49 features, the means of 4x4 pixels, to the test images (pixel-pooled, not FID)"
    # Our choice: 16 tokens of 7x7 pixels keep a run of a small study at minutes on a laptop.
    base = Recipe(
        net=NetSettings(patch=7, width=128, depth=4, heads=4),
        objective=ObjectiveSettings(guidance=Guidance.from_paper(1.0)),
        training=Training(images=100_000, batch=128, lr=1e-3, clip=None),
    )

    def __init__(self, folder: Path) -> None:
        self.title = f"{folder.resolve().name}, 28x28"
        self.data: Dataset = read_idx_folder(folder, "train")
        self._folder = folder

    @cached_property
    def _held_out(self) -> tuple[Tensor, Tensor]:
        return _pooled_all(read_idx_folder(self._folder, "t10k"))

    @cached_property
    def _reference(self) -> Gaussian:
        return Gaussian.of(self._held_out[0])

    @cached_property
    def _classifier(self) -> KernelClassifier:
        # Our choice: 3,000 training images; the exact solution is cubic in their number.
        x, labels = _pooled_all(self.data, 3000)
        return KernelClassifier(x, labels, self.data.classes or 1)

    @property
    def floor(self) -> float:
        """The distance that the training images themselves reach."""
        return frechet_distance(Gaussian.of(_pooled_all(self.data)[0]), self._reference)

    def score(self, x: Tensor, labels: Tensor) -> Score:
        """Judge samples x [N, 1, 28, 28] that were asked to be of the classes labels [N]."""
        features = _pooled(x)
        right = self._classifier(features) == labels
        return Score(frechet_distance(Gaussian.of(features), self._reference), float(right.double().mean()))


@lru_cache(maxsize=1)
def open_subject(source: str) -> Subject:
    """The subject of a name or folder; raises ValueError that says what can be named."""
    if source == "digits":
        return Digits()
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"ablations run on `digits`, or on a folder with the files of MNIST or Fashion-MNIST ({', '.join(FILES)}); "
            f"there is no folder {os.fspath(folder.absolute())}"
        )
    return IdxImages(folder)


def _pooled(x: Tensor) -> Tensor:
    """Means of 4x4 pixels: images [N, 1, 28, 28] -> features [N, 49]."""
    return F.avg_pool2d(x.float().cpu(), 4).flatten(1)


def _pooled_all(data: Dataset, n: int | None = None) -> tuple[Tensor, Tensor]:
    """Features [n, 49] and labels [n] of the first n samples, by default of all."""
    count = min(n or len(data), len(data))
    parts = [data.batch(range(i, min(i + 5000, count))) for i in range(0, count, 5000)]
    labels = [label for _, label in parts if isinstance(label, Tensor)]
    return torch.cat([_pooled(x) for x, _ in parts]), torch.cat(labels)
