"""What to say at the start of a run that begins with a recipe: what to expect, and what was changed."""

from __future__ import annotations

import math

from ..training import Training
from ..training.settings import FREE
from .cells import cell
from .config import Recipe
from .cost import cost, gpu_hours
from .leaves import changes, option
from .paper import FACTS
from .recipes import recipe

# Settings that change no result but its last digits.
_ASIDE = tuple(f"training.{name}" for name in (*FREE, "compile", "seed"))


def notices(
    name: str,
    variant: str | None,
    ablation: str | None,
    settings: Recipe,
    shape: tuple[int, ...],
    classes: int | None,
    lr_given: bool = False,
) -> list[str]:
    """Lines for the start of a run with these settings, which began as a recipe, on samples of a shape.

    lr_given: whether the learning rate was asked for, so that it is no oversight.
    """
    base = recipe(name, variant, ablation)
    said = [] if lr_given else [batch_notice(name, base.training, settings.training)]
    if name in FACTS:
        said.append(_expectation(name, variant, ablation, changes(base, settings), settings, shape, classes))
    return [line for line in said if line]


def batch_notice(name: str, before: Training, now: Training) -> str:
    """What a changed batch with the learning rate left as it was asks for; empty where there is nothing to say."""
    if now.batch == before.batch or now.lr != before.lr:
        return ""
    ratio = now.batch / before.batch
    text = (
        f"recipe {name} has batch {before.batch:,} with lr {before.lr:g}; the batch is now {now.batch:,} and lr was "
        f"left. Usual choices: --lr {now.lr * ratio:.3g} (linear in the batch) or --lr {now.lr * math.sqrt(ratio):.3g} "
        "(with its square root)"
    )
    if now.ema != before.ema or not any(now.ema):
        return text
    decay = now.ema[0]
    kept = " ".join(f"{d**ratio:.6g}" for d in now.ema)
    return (
        f"{text}. The average with decay {decay:g} has a half-life of {half_life(decay, now.batch):,} images instead "
        f"of {half_life(decay, before.batch):,}; --ema {kept} keeps it"
    )


def half_life(decay: float, batch: int) -> int:
    """Images after which the weights of an average count half."""
    return round(math.log(0.5) / math.log(decay) * batch) if decay > 0 else 0


def expected(name: str, variant: str | None, ablation: str | None) -> str:
    """What is published, such as "FID 3.43 with 1 call"; empty where nothing is."""
    variant = variant or FACTS[name].variants[0]
    found = FACTS[name].published(variant) if ablation is None else {1: cell(ablation).fid(variant)}
    calls = [f"{fid:.2f} with {n} call{'s' * (n > 1)}" for n, fid in found.items() if fid is not None]
    return "FID " + ", ".join(calls) if calls else ""


def _expectation(
    name: str,
    variant: str | None,
    ablation: str | None,
    changed: dict[str, object],
    settings: Recipe,
    shape: tuple[int, ...],
    classes: int | None,
) -> str:
    facts, published = FACTS[name], expected(name, variant, ablation)
    code = (variant or facts.variants[0]) == "code"
    what = name + (" as in the authors' code" if code else " as in the paper")
    differ = [option(key, value) for key, value in changed.items() if key not in _ASIDE]
    if (tuple(shape), classes) != (facts.shape, facts.classes):
        differ.append(f"samples {_samples(shape, classes)} instead of {_samples(facts.shape, facts.classes)}")
    if differ:
        return f"{what}, but changed: {', '.join(differ)}. {published or 'No FID'} is published for the recipe as it is"
    estimate = gpu_hours(cost(settings, facts.shape, facts.classes), settings.training, facts.authors_step)
    return (
        f"{what}: {published or 'no FID'} is published, after {settings.training.images:,} images, {estimate} here; "
        f"`meanflow recipes show {name}` says what the estimate rests on"
    )


def _samples(shape: tuple[int, ...], classes: int | None) -> str:
    return f"{tuple(shape)} with {classes or 'no'} classes"
