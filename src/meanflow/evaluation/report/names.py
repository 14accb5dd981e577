"""What the figures are called in tables, which way is better, and how they are written."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Meaning:
    """A metric for readers: its name in a table, which way is better ("lower", "higher", "floor"), and a sentence.

    "floor" is neither: good samples have the floor's value.
    """

    name: str
    better: str
    words: str


MEANINGS = {
    "frechet": Meaning(
        "Fréchet distance", "lower", "between Gaussians fitted to the features of samples and reference"
    ),
    "kid": Meaning("kernel distance", "lower", "unbiased squared MMD with a cubic kernel; may be slightly negative"),
    "inception_score": Meaning(
        "inception score", "higher", "classifier confidence and variety; blind to the reference"
    ),
    "precision": Meaning("precision", "higher", "share of samples within the reach of real images"),
    "recall": Meaning("recall", "higher", "share of real images within the reach of samples"),
    "density": Meaning("density", "higher", "how many reaches of real images hold a sample, on average, over k"),
    "coverage": Meaning("coverage", "higher", "share of real images that have a sample within reach"),
    "agreement": Meaning("agreement", "higher", "share of samples that a classifier takes for the asked class"),
    "nearest": Meaning(
        "nearest", "floor", "median distance to the nearest training image; much below the floor: copies"
    ),
    "copies": Meaning("copies", "floor", "share of samples nearer to training images than held-out images usually are"),
    "sliced_wasserstein": Meaning("sliced Wasserstein", "lower", "mean distance of projections on lines"),
    "mmd": Meaning("MMD", "lower", "maximum mean discrepancy with Gaussian kernels"),
}
ARROWS = {"lower": "↓", "higher": "↑", "floor": "≈ floor"}


def meaning(metric: str) -> Meaning:
    """What is known of a metric; one without an entry keeps its own name."""
    return MEANINGS.get(metric, Meaning(metric.replace("_", " "), "floor", ""))


def figure(value: float | None) -> str:
    """A value as it is written in every table, so that page, markdown and terminal agree."""
    if value is None:
        return "–"
    text = f"{value:.3f}" if abs(value) < 1000 else f"{value:.1f}"
    return "0.000" if text == "-0.000" else text


def interval(ends: tuple[float, float] | None) -> str:
    """ "1.190 to 1.301", or nothing."""
    return "" if ends is None else f"{figure(ends[0])} to {figure(ends[1])}"
