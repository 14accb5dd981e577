"""Metrics: each one draws items from the samples and makes one number of them, so that items can be resampled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .distances import Gaussian, frechet_distance, nearest_distances

Classify = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sample:
    """Features [N, D], the labels [N] that were asked for, and the logits [N, K] of an extractor that classifies."""

    features: Tensor
    labels: Tensor | None = None
    logits: Tensor | None = None


@dataclass(frozen=True)
class Material:
    """What samples are compared with, prepared once.

    reference: features [M, D], None where only their statistics are known. train: features of the training images,
    for the memorisation test. held_out: those of images not trained on. classify: features to classes.
    """

    gaussian: Gaussian
    reference: Tensor | None = None
    train: Tensor | None = None
    held_out: Tensor | None = None
    classify: Classify | None = None


@dataclass(frozen=True)
class Estimate:
    """A value together with the items [N, ...] it is made from; value = statistic(items)."""

    items: Tensor
    statistic: Callable[[Tensor], float]

    def value(self) -> float:
        """The metric of all items."""
        return self.statistic(self.items)


def frechet(s: Sample, m: Material) -> Estimate:
    """Frechet distance of the features to the reference; lower is better."""
    return Estimate(s.features, lambda f: frechet_distance(Gaussian.of(f), m.gaussian))


def agreement(s: Sample, m: Material) -> Estimate | None:
    """Share of samples that a classifier recognises as the class that was asked for."""
    if s.labels is None or m.classify is None:
        return None
    return Estimate((m.classify(s.features) == s.labels).double(), _mean)


def nearest(s: Sample, m: Material) -> Estimate | None:
    """Median distance of a sample to its nearest training image."""
    if m.train is None:
        return None
    return Estimate(nearest_distances(s.features, m.train), lambda d: float(d.median()))


METRICS: dict[str, Callable[[Sample, Material], Estimate | None]] = {
    "frechet": frechet,
    "agreement": agreement,
    "nearest": nearest,
}


def _mean(items: Tensor) -> float:
    return float(items.mean())


def resampled(e: Estimate, resamples: int, seed: int) -> Tensor:
    """The metric of `resamples` draws with replacement from the items, [resamples] float64."""
    generator = torch.Generator().manual_seed(seed)
    n = len(e.items)
    draws = [e.statistic(e.items[torch.randint(n, (n,), generator=generator)]) for _ in range(resamples)]
    return torch.tensor(draws, dtype=torch.float64)
