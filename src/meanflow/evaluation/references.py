"""What samples are compared with: features of real images, their statistics, and the floor."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..data import Dataset, open_data
from .classifier import KernelClassifier
from .distances import Gaussian
from .features import Extractor, Pixels
from .metrics import Material, Sample
from .protocols import Protocol


def prepared(
    p: Protocol, data: object, held_out: object, device: torch.device | str
) -> tuple[Protocol, Extractor, Material, Sample | None]:
    """The protocol as run, its extractor, its material, and what takes the place of samples for the floor."""
    if p.extractor != "pixels":
        raise ValueError(f"the features {p.extractor} are not there yet")
    extractor = Pixels()
    source = p.reference.source if data is None else data
    train, train_labels = _all(open_data(source, split="train"))
    held, _ = _all(open_data(source, split="held_out"))
    train, held = extractor(train), extractor(held)
    assert train_labels is not None
    classifier = KernelClassifier(train, train_labels, 10)
    material = Material(Gaussian.of(held), held, train, held, classifier)
    return replace(p), extractor, material, Sample(train, train_labels)


def _all(data: Dataset) -> tuple[Tensor, Tensor | None]:
    x, labels = data.batch(range(len(data)))
    return x, labels if isinstance(labels, Tensor) else None
