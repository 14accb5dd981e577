"""Metrics: each one draws items from the samples and makes one number of them, so that items can be resampled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from . import distances
from .distances import FrechetTo, Gaussian, in_balls, nearest_distances, radii

Classify = Callable[[Tensor], Tensor]
NEIGHBOURS_PRECISION = 3  # arXiv:1904.06991, section 3.1
NEIGHBOURS_DENSITY = 5  # arXiv:2002.09797, section 3.2
MOST_MANIFOLD = 10_000  # our choice: rows of the reference that precision, recall, density and coverage look at
NULL_QUANTILE = 0.01  # our choice: what is nearer to a training image than 99 % of held-out images counts as a copy


@dataclass(frozen=True)
class Sample:
    """Features [N, D], the labels [N] that were asked for, and the logits [N, K] of an extractor that classifies."""

    features: Tensor
    labels: Tensor | None = None
    logits: Tensor | None = None

    @cached_property
    def radii_precision(self) -> Tensor:
        """Distances [N] to the neighbour that bounds the manifold of precision and recall."""
        return radii(self.features, NEIGHBOURS_PRECISION)


@dataclass(frozen=True)
class Material:
    """What samples are compared with, prepared once.

    reference: features [M, D], None where only their statistics are known. train: features of the training images,
    for the memorisation test; held_out: those of images not trained on. classify: features to classes.
    """

    gaussian: Gaussian
    reference: Tensor | None = None
    train: Tensor | None = None
    held_out: Tensor | None = None
    classify: Classify | None = None

    @cached_property
    def frechet(self) -> FrechetTo:
        """The distance to the reference."""
        return FrechetTo(self.gaussian)

    @cached_property
    def manifold(self) -> Tensor:
        """The reference, or evenly spaced rows of a large one: all pairs are compared."""
        reference = _reference(self)
        return reference[:: -(-len(reference) // MOST_MANIFOLD)]

    @cached_property
    def radii_precision(self) -> Tensor:
        """Distances to the neighbour that bounds the manifold of precision and recall."""
        return radii(self.manifold, NEIGHBOURS_PRECISION)

    @cached_property
    def radii_density(self) -> Tensor:
        """Distances to the neighbour that bounds the balls of density and coverage."""
        return radii(self.manifold, NEIGHBOURS_DENSITY)

    @cached_property
    def null(self) -> Tensor | None:
        """Distances of held-out images to their nearest training image: what samples that copy nothing have."""
        if self.train is None or self.held_out is None:
            return None
        return nearest_distances(self.held_out, self.train)


@dataclass(frozen=True)
class Estimate:
    """A value together with the items [N, ...] it is made from; value = statistic(items).

    null: what the value is for real images, where that is not found by judging them in place of samples.
    """

    items: Tensor
    statistic: Callable[[Tensor], float]
    null: float | None = None

    @cached_property
    def value(self) -> float:
        """The metric of all items."""
        return self.statistic(self.items)


def resampled(e: Estimate, resamples: int, seed: int) -> Tensor:
    """The metric of `resamples` draws with replacement from the items, [resamples] float64."""
    generator = torch.Generator().manual_seed(seed)
    n = len(e.items)
    draws = [e.statistic(e.items[torch.randint(n, (n,), generator=generator)]) for _ in range(resamples)]
    return torch.tensor(draws, dtype=torch.float64)


class Missing(ValueError):
    """A metric cannot be computed with what there is; the message says what it lacks."""


def frechet(s: Sample, m: Material) -> Estimate:
    """Frechet distance of the features to the reference; lower is better."""
    return Estimate(s.features, lambda f: m.frechet(Gaussian.of(f)))


def kid(s: Sample, m: Material) -> Estimate:
    """Unbiased kernel distance of the features to the reference; lower is better."""
    reference = _reference(m)
    value = distances.kernel_distance(s.features, reference)
    return Estimate(value + distances.mmd_influence(s.features, reference, distances.polynomial), _mean)


def inception_score(s: Sample, m: Material) -> Estimate:
    """Inception score of the classes that the extractor sees; higher is better."""
    if s.logits is None:
        raise Missing("these features know no classes")
    return Estimate(s.logits, distances.inception_score)


def precision(s: Sample, m: Material) -> Estimate:
    """Share of samples on the manifold of the reference. Source: arXiv:1904.06991, eq. 2."""
    return _share(in_balls(s.features, m.manifold, m.radii_precision) > 0)


def recall(s: Sample, m: Material) -> Estimate:
    """Share of reference images on the manifold of the samples. Source: arXiv:1904.06991, eq. 3."""
    return _share(in_balls(m.manifold, s.features, s.radii_precision) > 0)


def density(s: Sample, m: Material) -> Estimate:
    """How many balls of reference images hold a sample, over k. Source: arXiv:2002.09797, eq. 5."""
    held = in_balls(s.features, m.manifold, m.radii_density)
    return Estimate(held.double() / NEIGHBOURS_DENSITY, _mean)


def coverage(s: Sample, m: Material) -> Estimate:
    """Share of reference images whose ball holds a sample. Source: arXiv:2002.09797, eq. 6."""
    nearest = nearest_distances(m.manifold.double(), s.features.double())
    return _share(nearest <= m.radii_density)


def agreement(s: Sample, m: Material) -> Estimate:
    """Share of samples that a classifier recognises as the class that was asked for."""
    if s.labels is None:
        raise Missing("the samples have no labels")
    found = s.logits.argmax(1) if s.logits is not None else m.classify(s.features) if m.classify else None
    if found is None:
        raise Missing("there is no classifier for these data")
    return _share(found == s.labels)


def nearest(s: Sample, m: Material) -> Estimate:
    """Median distance of a sample to its nearest training image; its null is that of held-out images."""
    return Estimate(_to_train(s, m), _median, _median(m.null) if m.null is not None else None)


def copies(s: Sample, m: Material) -> Estimate:
    """Share of samples nearer to a training image than 99 % of held-out images are; 0.01 is none too many."""
    if m.null is None:
        raise Missing("there are no held-out images beside the training images")
    bound = torch.quantile(m.null.double(), NULL_QUANTILE)
    return Estimate((_to_train(s, m) < bound).double(), _mean, NULL_QUANTILE)


def sliced_wasserstein(s: Sample, m: Material) -> Estimate:
    """Sliced 2-Wasserstein distance to the reference; lower is better."""
    reference = _reference(m)
    return Estimate(s.features, lambda f: distances.sliced_wasserstein(f, reference))


def mmd(s: Sample, m: Material) -> Estimate:
    """Unbiased squared MMD to the reference with Gaussian kernels; lower is better."""
    reference = _reference(m)
    value, kernel = distances.gaussian_mmd(s.features, reference), distances.gaussian_kernel(reference)
    return Estimate(value + distances.mmd_influence(s.features, reference, kernel), _mean)


METRICS: dict[str, Callable[[Sample, Material], Estimate]] = {
    f.__name__: f
    for f in (
        frechet,
        kid,
        inception_score,
        precision,
        recall,
        density,
        coverage,
        agreement,
        nearest,
        copies,
        sliced_wasserstein,
        mmd,
    )
}
HIGHER_IS_BETTER = ("inception_score", "precision", "recall", "density", "coverage", "agreement")


def _reference(m: Material) -> Tensor:
    if m.reference is None:
        raise Missing("of the reference only mean and covariance are known, not the features")
    return m.reference


def _to_train(s: Sample, m: Material) -> Tensor:
    if m.train is None:
        raise Missing("there are no training images to compare with")
    return nearest_distances(s.features, m.train)


def _share(hits: Tensor) -> Estimate:
    return Estimate(hits.double(), _mean)


def _mean(items: Tensor) -> float:
    return float(items.mean())


def _median(items: Tensor) -> float:
    return float(items.median())
