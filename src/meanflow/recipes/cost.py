"""What training by a recipe costs, counted on fake tensors: no memory, no arithmetic, whatever the size."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

# The only way torch offers to run a program for its shapes with the kernels and the autocast of a real device.
from torch._subclasses.fake_tensor import FakeTensorMode

from ..bench import flops, peak_bytes
from ..bench.cost import Work
from ..core.conditions import LABEL, Cond, augmented
from ..core.times import Pairs
from ..core.weighting import AdaptiveWeight
from ..data import EDMAugment
from ..nets.dit import SIZES
from ..objectives import FlowMatching, MeanFlow, Objective
from ..training import Training
from .config import NetSettings, ObjectiveSettings, Recipe, TimesSettings, build_objective, net_for

# FLOP/s of an H100 SXM in bf16, dense: NVIDIA's data sheet.
H100 = 989e12
# Shares of it that training uses. The lower one is what the authors' code reaches with B/4: 4 forward passes of 256
# images at 11.1 GFLOPs in 0.052 s (paper) on a TPU v4-8, 4 x 275 TFLOP/s. The upper one is a guess for large networks.
SHARES = (0.2, 0.4)
# Forward passes of the batch in an unguided step of the authors' PyTorch code: one derivative over all rows.
AUTHORS_STEP = 5
ROWS = 20  # our choice: shares of r = t and of dropped labels are counted in 20ths


@dataclass(frozen=True)
class Cost:
    """Parameters, and per sample the FLOPs of one forward pass and of a training step (a multiply-add is two), and the
    bytes that a step holds at its peak."""

    parameters: int
    forward: float
    step: float
    activations: float

    @property
    def ratio(self) -> float:
        """FLOPs of a step over those of a flow-matching step, which are three forward passes."""
        return self.step / (3 * self.forward)

    def states(self, training: Training) -> int:
        """Bytes that do not depend on the batch: float32 weights, gradients, two moments, averages."""
        return 4 * self.parameters * (4 + len(training.ema) + len(training.ema_power))

    def memory(self, training: Training, gpus: int = 1) -> float:
        """Bytes on each of some GPUs that share the batch, a micro-batch at a time, without sharding or compiling."""
        return self.states(training) + self.activations * training.batch / (gpus * training.accumulate)

    def flops(self, training: Training) -> float:
        """FLOPs of the whole run."""
        return self.step * training.batch * training.steps


@dataclass(frozen=True)
class Estimate:
    """GPU-hours of a run from its FLOPs, between two assumptions, and what they rest on."""

    low: float
    high: float
    assumption: str

    def __str__(self) -> str:
        low, high = (f"{float(f'{hours:.2g}'):,g}" for hours in (self.low, self.high))
        return f"about {low if low == high else f'{low} to {high}'} GPU-hours"


def gpu_hours(found: Cost, training: Training, authors_step: float | None = None) -> Estimate:
    """An estimate from FLOPs. authors_step: GPU-seconds of a step of the authors' code, taken for its rate if given."""
    if authors_step is not None:
        rates = (AUTHORS_STEP * found.forward * training.batch / authors_step,) * 2
        assumption = (
            f"{rates[0] / 1e12:.0f} TFLOP/s a GPU, which the authors' code reaches on H200 "
            f"({authors_step:.3g} GPU-seconds a step, its README)"
        )
    else:
        rates = (SHARES[1] * H100, SHARES[0] * H100)
        assumption = (
            f"an H100 at {SHARES[1]:.0%} (a guess) to {SHARES[0]:.0%} (the authors' B/4 on TPUs) of its "
            f"{H100 / 1e12:.0f} TFLOP/s in bf16"
        )
    low, high = (found.flops(training) / rate / 3600 for rate in rates)
    return Estimate(low, high, assumption)


def cost(recipe: Recipe, shape: tuple[int, ...], classes: int | None) -> Cost:
    """The cost of a recipe on samples of a shape, with class labels or without; attention, products and convolutions
    are counted.

    The bytes are those of a flow-matching step, which hold within a few per cent for MeanFlow: the derivative stores
    nothing. A DiT is counted without blocks and with one, and continued to its depth: exact for parameters and FLOPs,
    within a hundredth for the bytes.
    """
    net, samples = spelled_out(recipe.net), _Samples(shape, classes, recipe.training.augment == "edm")
    objective = _what_costs(recipe.objective)
    if net.kind != "dit":
        return _counted(net, objective, samples)
    none, one = (_counted(replace(net, depth=depth), objective, samples) for depth in (0, 1))
    return Cost(*(a + net.depth * (b - a) for a, b in zip(astuple(none), astuple(one), strict=True)))


def _what_costs(s: ObjectiveSettings) -> ObjectiveSettings:
    """The settings without those that cost nothing, so that recipes which differ in these only are counted once."""
    return replace(
        s,
        times=TimesSettings(share_equal=s.times.share_equal),
        guidance=replace(s.guidance, interval=(0.0, 1.0), drop_rows="first"),
        weighting=AdaptiveWeight(),
    )


@dataclass(frozen=True)
class _Samples:
    """What a batch looks like; told: whether the network is told what an augmentation did."""

    shape: tuple[int, ...]
    classes: int | None
    told: bool = False

    def x(self, rows: int) -> Tensor:
        return torch.zeros(rows, *self.shape)

    def cond(self, rows: int) -> Cond:
        labels = None if self.classes is None else torch.zeros(rows, dtype=torch.long)
        return augmented(labels, torch.zeros(rows, EDMAugment().features)) if self.told else labels


@lru_cache(maxsize=64)
def _counted(settings: NetSettings, objective: ObjectiveSettings, samples: _Samples) -> Cost:
    conditions = {} if samples.classes is None else {LABEL: {"classes": samples.classes}}
    # Fake tensors on the CPU: the meta device has no autocast.
    with FakeTensorMode():
        net = net_for(settings, samples.shape, conditions, samples.told)
        flow = FlowMatching(net, precision=objective.precision)
        # The difference leaves out what a step holds whatever the batch, such as weights cast to bfloat16.
        held = peak_bytes(_step(flow, samples, 2 * ROWS)) - peak_bytes(_step(flow, samples, ROWS))
        built = build_objective(objective, _without_norms(net))
        forward = flops(lambda: _forward(net, samples))
        step = flops(_step(built, samples, ROWS))
    return Cost(sum(p.numel() for p in net.parameters()), forward, step / ROWS, held / ROWS)


def _without_norms(net: nn.Module) -> nn.Module:
    """The network with its normalisation switched off: it has no FLOPs that are counted, and the fused form of torch no
    forward-mode derivative on fake tensors."""
    for module in net.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.__class__ = nn.Identity  # type: ignore[assignment]
    return net


def _forward(net: nn.Module, samples: _Samples) -> None:
    t = torch.zeros(1)
    with torch.no_grad():
        net(samples.x(1), t=t, r=t, cond=replace(samples, told=False).cond(1))


def _step(objective: Objective, samples: _Samples, rows: int) -> Work:
    """A training step without the optimiser, with the expected numbers of rows with r = t and without label."""
    x, t, cond = samples.x(rows), torch.zeros(rows), samples.cond(rows)

    def work() -> None:
        objective.zero_grad(set_to_none=True)
        drawn = (t, None) if isinstance(objective, FlowMatching) else _drawn(objective, t, samples.classes is not None)
        objective._run(x, cond, x, *drawn).loss.backward()

    return work


def _drawn(objective: Objective, t: Tensor, labelled: bool) -> tuple[Pairs, Tensor | None, int]:
    """Times and dropped rows of a MeanFlow step."""
    assert isinstance(objective, MeanFlow)
    rows, guidance = len(t), objective.guidance
    pairs = Pairs(t, t, round(rows * objective.times.share_equal))
    if guidance is None or not labelled:
        return pairs, None, 0
    return pairs, torch.zeros(rows, dtype=torch.bool), round(rows * guidance.drop)


def spelled_out(net: NetSettings) -> NetSettings:
    """A published size as its patch, width, depth and heads."""
    name, _, patch = (net.size or "").partition("/")
    if net.kind != "dit" or name not in SIZES:
        return net
    width, depth, heads = SIZES[name]
    return replace(net, size=None, patch=int(patch), width=width, depth=depth, heads=heads)
