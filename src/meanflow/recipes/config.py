"""What a recipe says: network, objective and training as plain settings, and how they become objects."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
from torch import nn
from tyro.conf import arg

from ..core.conditions import MASK, OBSERVATION
from ..core.derivative import Mode
from ..core.guidance import Guidance
from ..core.source import GaussianSource, Source, UniformSource
from ..core.times import LogitNormal, TimeDistribution, Times, Uniform
from ..core.weighting import AdaptiveWeight
from ..data import Dataset, EDMAugment, conditions_of, network_options
from ..nets import MLP, DiT, SequenceDiT, UNet
from ..nets.layers import Conditioning
from ..objectives import FlowMatching, MeanFlow, Objective
from ..objectives.base import Precision
from ..own import named, network
from ..training import Training

TOKENS = 64  # at most so many where the patch is chosen; our choice


@dataclass(frozen=True)
class NetSettings:
    """The network; its input shape and classes come from the data."""

    kind: Literal["dit", "unet", "mlp"] = "dit"
    """dit: transformer for images and for sequences (C, L); unet: convolutions for images; mlp: residual perceptron for
    samples of any shape."""
    size: str | None = None
    """Published DiT size such as B/4 (S, B, M, L, XL with patch 2, 4, 8); sets patch, width, depth and heads."""
    patch: int | None = None
    """Side of a DiT token in pixels; None chooses one that gives at most 64 tokens."""
    width: int = 192
    """Features per token or layer; channels of a U-Net."""
    depth: int = 6
    """Blocks; of a U-Net, per resolution."""
    heads: int = 6
    """Attention heads of a DiT."""
    conditioning: Conditioning = "t,t-r"
    """Which times the network sees (table 1c of the paper)."""
    multipliers: tuple[int, ...] = (2, 2, 2)
    """Channels of each resolution of a U-Net, in units of its width."""
    attention: tuple[int, ...] = (16,)
    """Sides of a U-Net's feature maps that attend to themselves."""
    dropout: float = 0.0
    """Dropout of a U-Net."""


@dataclass(frozen=True)
class TimesSettings:
    """Where the training times come from."""

    t: str = "lognorm(-0.4,1)"
    """Distribution of t: lognorm(mean,std) or uniform(low,high)."""
    r: str | None = None
    """Distribution of r; None takes that of t."""
    share_equal: float = 0.75
    """Share of rows with r = t; the paper's "25 % r != t" is 0.75."""
    pick: Literal["first", "coin"] = "first"
    """Which rows have r = t: the first ones, or each by a coin."""
    order: Literal["sort", "clip"] = "sort"
    """sort: the larger draw is t; clip: r := min(t, r)."""


@dataclass(frozen=True)
class ObjectiveSettings:
    """What is minimised."""

    kind: Literal["meanflow", "flow-matching"] = "meanflow"
    """meanflow, or flow-matching as the baseline (sampled with Euler steps)."""
    times: TimesSettings = field(default_factory=TimesSettings)
    guidance: Guidance = field(default_factory=lambda: Guidance(scale=1.0, drop=0.0))
    """Guidance trained into the field; scale 1 with drop 0 is none."""
    weighting: AdaptiveWeight = field(default_factory=AdaptiveWeight)
    """Adaptive weight 1 / (||D||^2 + c)^p."""
    derivative: Mode = "exact"
    """How du/dt is computed."""
    precision: Precision = "fp32"
    """fp32, or bf16 for the network under autocast with everything else in fp32."""
    derivative_precision: Precision | None = None
    """Precision of the pass that gives du/dt; None takes that of the rest."""
    source: str | None = None
    """Where samples start: gaussian(mean,std) or uniform(low,high); None is gaussian(0,1)."""
    tangent: tuple[float, float] = (0.0, 1.0)
    """Tangent of (r, t); (0, 1) is right, the others of table 1b are for teaching."""


@dataclass(frozen=True)
class Recipe:
    """A complete set of settings."""

    net: NetSettings = field(default_factory=NetSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    training: Annotated[Training, arg(name="")] = field(default_factory=Training)


def build(recipe: Recipe, data: Dataset, own: str | None = None, *, empty: bool = False) -> Objective:
    """The objective around a new network for these data, initialised from the recipe's seed.

    own: the network of the user's that PATH.py:NAME or module:NAME means, instead of the recipe's. empty: the recipe's
    network has no memory for its weights; it can be counted, not run. Raises ValueError with an estimate where it
    cannot fit into memory.
    """
    torch.manual_seed(recipe.training.seed)
    told, objective = recipe.training.augment == "edm", _for_data(recipe.objective, data)
    if own is not None:
        return build_objective(objective, build_own(own, data, told))
    from .room import check_room  # here, because it needs the settings above

    shape, conditions = tuple(data.shape), conditions_of(data)
    check_room(recipe, shape, conditions, data.classes, taken=not empty)
    with torch.device("meta") if empty else nullcontext():
        return build_objective(objective, net_for(recipe.net, shape, conditions, told))


def _for_data(s: ObjectiveSettings, data: Dataset) -> ObjectiveSettings:
    """Without labels there are none to drop: recipes that only drop them, and do not guide, serve such data too."""
    if s.guidance.acts or s.guidance.drop == 0 or data.batch([0])[1] is not None:
        return s
    return replace(s, guidance=replace(s.guidance, drop=0.0))


def net_for(s: NetSettings, shape: tuple[int, ...], conditions: Mapping[str, Any], told: bool = False) -> nn.Module:
    """The network for samples of a shape with conditions as `conditions_of` describes them.

    told: whether a U-Net takes augmentation labels. Raises ValueError for conditions or lengths that no built-in
    network of this kind takes.
    """
    options = {**network_options(conditions), "conditioning": s.conditioning}
    if MASK in conditions and not (s.kind == "dit" and len(shape) == 2):
        raise ValueError(
            f"samples {shape} with a mask of what exists need a network that looks at it: --net.kind dit for sequences "
            "(C, L), or one of your own with --net (docs/own-code.md)"
        )
    if s.kind == "mlp":
        if OBSERVATION in conditions:
            options["observation"] = math.prod(conditions[OBSERVATION]["shape"])
        return MLP(shape, width=s.width, depth=s.depth, **options)
    if s.kind == "unet":
        return UNet(
            shape,  # type: ignore[arg-type]
            channels=s.width,
            multipliers=s.multipliers,
            blocks=s.depth,
            attention=s.attention,
            dropout=s.dropout,
            augment_features=EDMAugment().features if told else None,
            **options,
        )
    if s.size is not None:
        return DiT.of_size(s.size, shape, **options)  # type: ignore[arg-type]
    if len(shape) == 2:
        patch = s.patch or max(1, -(-shape[1] // TOKENS))
        return SequenceDiT(shape, patch=patch, width=s.width, depth=s.depth, heads=s.heads, **options)
    patch = s.patch or (_patch(shape[1], shape[2]) if len(shape) == 3 else 1)
    return DiT(shape, patch=patch, width=s.width, depth=s.depth, heads=s.heads, **options)  # type: ignore[arg-type]


def build_own(target: str, data: Dataset, told: bool = False) -> nn.Module:
    """The user's own network, which may ask for the shape and the classes of the data by name."""
    offered = {"shape": tuple(data.shape), "classes": data.classes, "conditions": conditions_of(data, scan=False)}
    return network(named(target), offered | ({"augment_features": EDMAugment().features} if told else {}))


def build_objective(s: ObjectiveSettings, net: nn.Module) -> Objective:
    """The objective around a network."""
    guided = s.guidance.scale != 1 or s.guidance.drop > 0
    if s.kind == "flow-matching":
        return FlowMatching(
            net,
            time=parse_time(s.times.t),
            weighting=s.weighting,
            drop=s.guidance.drop,
            drop_rows=s.guidance.drop_rows,
            precision=s.precision,
            source=parse_source(s.source),
        )
    t = s.times
    return MeanFlow(
        net,
        times=Times(parse_time(t.t), parse_time(t.r) if t.r else None, t.share_equal, t.pick, t.order),
        guidance=s.guidance if guided else None,
        weighting=s.weighting,
        derivative=s.derivative,
        tangent=s.tangent,
        derivative_precision=s.derivative_precision,
        precision=s.precision,
        source=parse_source(s.source),
    )


def parse_time(text: str) -> TimeDistribution:
    """ "lognorm(-0.4,1)" or "uniform(0,1)" as a distribution; raises ValueError for anything else."""
    kind, first, second = _two_numbers(text, "lognorm(mean,std)", "times")
    return (LogitNormal if kind == "lognorm" else Uniform)(first, second)


def parse_source(text: str | None) -> Source | None:
    """ "gaussian(0,2)" or "uniform(-1,1)" as a source; None for none. Raises ValueError for anything else."""
    if text is None:
        return None
    kind, first, second = _two_numbers(text, "gaussian(mean,std)", "sources")
    return (GaussianSource if kind == "gaussian" else UniformSource)(first, second)


def _two_numbers(text: str, one: str, what: str) -> tuple[str, float, float]:
    """Name and numbers of a distribution; `one`: how it is written where it is not uniform(low,high)."""
    name = one.partition("(")[0]
    match = re.fullmatch(rf"\s*({name}|uniform)\s*\(\s*([-+.\deE]+)\s*,\s*([-+.\deE]+)\s*\)\s*", text)
    if not match:
        raise ValueError(f"{what} are written {one} or uniform(low,high), got {text!r}")
    return match[1], float(match[2]), float(match[3])


def _patch(height: int, width: int, tokens: int = TOKENS) -> int:
    """The smallest patch that divides both sides and leaves at most `tokens` tokens."""
    common = math.gcd(height, width)
    fits = [p for p in range(1, common + 1) if common % p == 0]
    return next((p for p in fits if height * width // p**2 <= tokens), fits[-1])
