"""Recipes by name; the first line of each docstring is what `meanflow recipes` shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .._hint import did_you_mean
from ..core.conditions import MASK
from ..core.guidance import Guidance
from ..core.weighting import AdaptiveWeight
from ..data import Dataset
from ..training import Training
from .cells import cell
from .config import NetSettings, ObjectiveSettings, Recipe
from .leaves import changed
from .paper import EPOCH, FACTS, PAPER_RECIPES, Variant


def digits() -> Recipe:
    """Handwritten digits 8x8 with guidance 2.0 trained in: two minutes on a laptop."""
    # Guidance at all times narrows the samples (distance 2.0); up to t = 0.6 they stay as varied as the data.
    guidance = Guidance(scale=2.0, interval=(0.0, 0.6))
    return replace(digits_unguided(), objective=ObjectiveSettings(guidance=guidance))


def digits_unguided() -> Recipe:
    """Handwritten digits 8x8 without guidance: samples spread like the data."""
    return Recipe(
        net=NetSettings(patch=2, width=96, depth=3, heads=4),
        training=Training(images=160_000, batch=128, lr=2e-3, save_every=32_000, grid_every=32_000),
    )


def digits_flow_matching() -> Recipe:
    """Handwritten digits 8x8 by plain flow matching: the baseline that needs many calls."""
    return replace(digits_unguided(), objective=_flow_matching())


def fashion_mnist() -> Recipe:
    """Fashion-MNIST 28x28 without guidance: half an hour of one CPU core."""
    return Recipe(
        net=NetSettings(patch=4, width=128, depth=4, heads=4),
        training=Training(
            images=150_000,
            batch=64,
            lr=1.5e-3,
            warmup=6_400,
            schedule="cosine",
            ema=(0.998,),
            save_every=30_000,
            grid_every=30_000,
            milestone_every=30_000,
        ),
    )


def fashion_mnist_flow_matching() -> Recipe:
    """Fashion-MNIST 28x28 by plain flow matching, for as many images: the baseline that needs many calls."""
    return replace(fashion_mnist(), objective=_flow_matching())


def dit_tiny() -> Recipe:
    """Small images on a machine without a GPU: DiT of width 192, depth 6, at most 64 tokens."""
    return Recipe(training=Training(images=500_000, batch=64, lr=1e-3, warmup=6_400, ema=(0.999, 0.9999)))


def dit_s() -> Recipe:
    """Images or latents on one GPU: DiT-S/2 with the optimiser of the paper's ImageNet runs."""
    return Recipe(
        net=NetSettings(size="S/2"),
        training=Training(
            images=50_000_000,
            batch=256,
            lr=1e-4,
            betas=(0.9, 0.95),
            ema=(0.9999, 0.999),
            clip=None,
            save_every=1_000_000,
            grid_every=500_000,
            log_every=25_600,
        ),
    )


def points() -> Recipe:
    """Vectors, such as points of a plane: a perceptron of width 256, depth 4."""
    return Recipe(
        net=NetSettings(kind="mlp", width=256, depth=4),
        training=Training(images=1_000_000, batch=512, lr=1e-3, warmup=25_600, schedule="cosine"),
    )


RECIPES: dict[str, Callable[..., Recipe]] = {
    "digits": digits,
    "digits-unguided": digits_unguided,
    "digits-flow-matching": digits_flow_matching,
    "fashion-mnist": fashion_mnist,
    "fashion-mnist-flow-matching": fashion_mnist_flow_matching,
    "dit-tiny": dit_tiny,
    "dit-s": dit_s,
    "points": points,
    **PAPER_RECIPES,
}
ABLATED = "imagenet-b4"


def recipe(name: str, variant: str | None = None, ablation: str | None = None) -> Recipe:
    """The recipe of a name, for a row of the paper as "paper" or "code" does it, or a cell of its ablations.

    ablation: such as "a:50", for imagenet-b4 only; then 80 epochs, and guidance where the cell has it.
    Raises ValueError with the nearest name for an unknown one, and with what there is for the others.
    """
    if name not in RECIPES:
        hint = did_you_mean(name, RECIPES, "; see `meanflow recipes`.")
        raise ValueError(f"unknown recipe {name!r}{hint} Known: {', '.join(RECIPES)}")
    found = RECIPES[name](*([] if variant is None else [_checked(name, variant)]))
    if ablation is None:
        return found
    if name != ABLATED:
        raise ValueError(f"the ablations are cells of {ABLATED}, not of {name}; use --recipe {ABLATED}")
    return cell(ablation).apply(_unguided(found))


def _checked(name: str, variant: str) -> Variant:
    """The variant, if the recipe has it."""
    if name not in FACTS:
        raise ValueError(f"{name} is no row of the paper, so there is no paper and no code to follow; leave --as out")
    for known in FACTS[name].variants:
        if variant == known:
            return known
    raise ValueError(f"{name} can be had as {' or '.join(FACTS[name].variants)}, not as {variant!r}")


def _unguided(found: Recipe) -> Recipe:
    """What the tables of ablations begin with: no guidance, 80 epochs."""
    return changed(
        found, {"objective.guidance.scale": 1.0, "objective.guidance.mix": 0.0, "training.images": 80 * EPOCH}
    )


def default_name(data: Dataset, source: str) -> str:
    """The recipe that fits data for which none was named."""
    if source == "digits":
        return "digits"
    cond = data.batch([0])[1]
    padded = isinstance(cond, dict) and MASK in cond
    return "dit-tiny" if len(data.shape) == 3 or padded else "points"


def _flow_matching() -> ObjectiveSettings:
    return ObjectiveSettings(kind="flow-matching", weighting=AdaptiveWeight(p=0.0))
