"""The rows of the paper as recipes, as the paper says and as the authors' code does, with what is published of them.

Sources: arXiv:2505.13447, tables 1 to 5 and its section on CIFAR-10; the authors' code, Gsunshine/meanflow (JAX,
ImageNet) and Gsunshine/py-meanflow (PyTorch, CIFAR-10), with their README files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ..core.guidance import Guidance
from ..core.weighting import AdaptiveWeight
from ..training import Training
from .config import NetSettings, ObjectiveSettings, Recipe, TimesSettings

Variant = Literal["paper", "code"]
EPOCH = 1_281_167  # training images of ImageNet (ILSVRC 2012)
CIFAR_BATCH = 1024
# The authors' loader drops the last images of an epoch: 48 batches of 1,024 in each of 16,000 epochs.
CIFAR_CODE_EPOCH = 48 * CIFAR_BATCH


@dataclass(frozen=True)
class Facts:
    """What is known of a recipe beside its settings.

    source: where it stands. data: what it is meant for, `shape` and `classes` of it, images in an `epoch`. fid: by
    variant and number of network calls, of 50,000 samples. code: the authors' code that the variant "code" follows.
    why: the reasons of settings that differ between the variants. notes: what no setting says.
    authors_step: GPU-seconds that a step of the authors' code takes, where they say so.
    """

    source: str
    data: str
    shape: tuple[int, ...]
    classes: int | None
    epoch: int
    fid: Mapping[Variant, Mapping[int, float]]
    code: str
    why: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    authors_step: float | None = None

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What --as takes, the default first."""
        return tuple(self.fid)

    def published(self, variant: str) -> dict[int, float | None]:
        """FID by number of network calls in a variant."""
        return {calls: fid for known, found in self.fid.items() if known == variant for calls, fid in found.items()}


def imagenet_b4(variant: Variant = "paper") -> Recipe:
    """ImageNet 256x256 latents, DiT-B/4, 80 epochs, unguided: the base of the paper's ablations (--ablation)."""
    if variant == "code":
        return _imagenet("B/4", 240, Guidance(scale=2.0, mix=0.5), variant)
    return _imagenet("B/4", 80, Guidance(), variant)


def imagenet_b2(variant: Variant = "paper") -> Recipe:
    """ImageNet 256x256 latents, DiT-B/2, 240 epochs."""
    return _imagenet("B/2", 240, Guidance(scale=2.0, mix=0.5), variant)


def imagenet_m2(variant: Variant = "paper") -> Recipe:
    """ImageNet 256x256 latents, DiT-M/2, 240 epochs."""
    return _imagenet("M/2", 240, Guidance(scale=2.0, mix=0.5), variant)


def imagenet_l2(variant: Variant = "paper") -> Recipe:
    """ImageNet 256x256 latents, DiT-L/2, 240 epochs."""
    return _imagenet("L/2", 240, Guidance(scale=2.5, mix=0.92, interval=(0.0, 0.8)), variant)


def imagenet_xl2(variant: Variant = "paper") -> Recipe:
    """ImageNet 256x256 latents, DiT-XL/2, 240 epochs: the paper's main result."""
    return _imagenet("XL/2", 240, Guidance(scale=2.5, mix=0.92, interval=(0.0, 0.75)), variant)


def imagenet_xl2_plus(variant: Variant = "paper") -> Recipe:
    """ImageNet 256x256 latents, DiT-XL/2, 1000 epochs, for two calls."""
    return _imagenet("XL/2", 1000, Guidance(scale=2.0, mix=0.5, interval=(0.3, 0.8)), variant)


def cifar10_v0(variant: Variant = "paper") -> Recipe:
    """CIFAR-10 pixels without labels, U-Net, 800,000 steps of 1,024: as in the paper."""
    return _cifar(TimesSettings(t="lognorm(-2,2)", share_equal=0.25), variant)


def cifar10_v1(variant: Variant = "code") -> Recipe:
    """CIFAR-10 pixels without labels, U-Net, 768,000 steps of 1,024: what the authors' code recommends."""
    return _cifar(TimesSettings(t="lognorm(-0.6,1.6)", r="lognorm(-4,1.6)", order="clip", share_equal=0.25), variant)


def _imagenet(size: str, epochs: int, guidance: Guidance, variant: Variant) -> Recipe:
    code = variant == "code"
    return Recipe(
        net=NetSettings(size=size),
        objective=ObjectiveSettings(
            guidance=replace(guidance, drop=0.1, drop_rows="first" if code else "coin"),
            weighting=AdaptiveWeight(p=1.0, c=0.01 if code else 1e-3),
            precision="bf16",
        ),
        training=Training(
            images=epochs * EPOCH,
            batch=256,
            optimizer="adamw" if code else "adam",
            lr=1e-4,
            betas=(0.9, 0.95),
            clip=None,
            ema=(0.9999,),
            ema_start="full" if code else "warm",
            save_every=2 * EPOCH,
            grid_every=EPOCH,
            log_every=25_600,
        ),
    )


def _cifar(times: TimesSettings, variant: Variant) -> Recipe:
    code = variant == "code"
    return Recipe(
        net=NetSettings(kind="unet", width=128, depth=4, multipliers=(2, 2, 2), attention=(16,), dropout=0.2),
        objective=ObjectiveSettings(
            times=replace(times, pick="coin" if code else "first"), weighting=AdaptiveWeight(p=0.75, c=1e-3)
        ),
        training=Training(
            images=16_000 * CIFAR_CODE_EPOCH if code else 800_000 * CIFAR_BATCH,
            batch=CIFAR_BATCH,
            lr=6e-4,
            betas=(0.9, 0.999),
            warmup=200 * CIFAR_CODE_EPOCH if code else 10_000 * CIFAR_BATCH,
            clip=None,
            ema=(0.9999, 0.99995, 0.9996) if code else (0.99995,),
            ema_every=16 if code else 1,
            ema_start="full" if code else "warm",
            augment="edm",
            save_every=5_000_000,
            grid_every=1_000_000,
            log_every=102_400,
        ),
    )


PAPER_RECIPES: dict[str, Callable[..., Recipe]] = {
    "imagenet-b4": imagenet_b4,
    "imagenet-b2": imagenet_b2,
    "imagenet-m2": imagenet_m2,
    "imagenet-l2": imagenet_l2,
    "imagenet-xl2": imagenet_xl2,
    "imagenet-xl2+": imagenet_xl2_plus,
    "cifar10-v0": cifar10_v0,
    "cifar10-v1": cifar10_v1,
}

_SUMMED = "squared errors are summed over the dimensions before the weight, never averaged (paper and code)"
_START = "the paper says nothing of the start, and here a warm-up makes early samples visible; the code has none"

_IMAGENET = Facts(
    source="arXiv:2505.13447, tables 2 and 4",
    data="latents of ImageNet 256x256 by sd-vae-ft-mse (`meanflow encode`)",
    shape=(4, 32, 32),
    classes=1000,
    epoch=EPOCH,
    fid={"paper": {}, "code": {}},
    code="Gsunshine/meanflow (JAX)",
    why={
        "objective.weighting.c": 'the paper says "e.g. 1e-3"',
        "objective.guidance.drop_rows": "each row by itself; the code drops the first rows, which have r = t",
        "training.optimizer": "the same: the weight decay is 0",
        "training.ema_start": _START,
        "objective.guidance.scale": "w = 1, k = 0.5 are the code's default; 1 is none",
        "training.images": "240 epochs in the code's configuration of B/4",
    },
    notes=(
        _SUMMED,
        "rows with r = t: the first ones of the batch, as in the code; in a shuffled batch that is any fixed share",
        "outside the guidance interval w is 1 and k is 0, and guidance is evaluated without dropout (as in the code)",
        "FID with random labels; balanced labels alone move XL/2 from 3.47 to 3.33",
        "bf16 is our choice, as in the PyTorch reproduction zhuyu-cs/MeanFlow; the authors' code says float32 "
        "and runs on TPUs",
    ),
)

_CIFAR = Facts(
    source="arXiv:2505.13447, table 3 and its section on CIFAR-10",
    data="pixels of the 50,000 training images of CIFAR-10, without labels",
    shape=(3, 32, 32),
    classes=None,
    epoch=50_000,
    fid={"paper": {1: 2.92}, "code": {}},
    code="Gsunshine/py-meanflow (PyTorch)",
    why={
        "objective.times.pick": "a fixed share of the batch; the code tosses a coin for each row",
        "training.images": "800,000 steps; the code's 16,000 epochs of 48 whole batches are 768,000",
        "training.warmup": "10,000 steps; the code's 200 epochs are 9,600",
        "training.ema": "the code keeps three averages",
        "training.ema_every": "the code moves them every 16 steps, by the decay to the 16th power",
        "training.ema_start": _START,
    },
    notes=(
        _SUMMED,
        "augmentation as in EDM, without vertical flips and rotations; the network is told what was done",
        "the code computes in float32 with TF32 products and keeps its averages in float64, here float32",
    ),
    # README of py-meanflow: 0.21 s a step on 8 H200.
    authors_step=8 * 0.21,
)


def _row(fid: dict[int, float]) -> Facts:
    return replace(_IMAGENET, fid={"paper": fid, "code": {}})


FACTS: dict[str, Facts] = {
    "imagenet-b4": replace(
        _IMAGENET, source="arXiv:2505.13447, tables 1, 4 and 5", fid={"paper": {1: 61.06}, "code": {1: 11.4}}
    ),
    "imagenet-b2": _row({1: 6.17}),
    "imagenet-m2": _row({1: 5.01}),
    "imagenet-l2": _row({1: 3.84}),
    "imagenet-xl2": _row({1: 3.43, 2: 2.93}),
    "imagenet-xl2+": _row({2: 2.20}),
    "cifar10-v0": _CIFAR,
    "cifar10-v1": replace(
        _CIFAR,
        source="README and scripts of Gsunshine/py-meanflow",
        fid={"code": {1: 2.80}},
        notes=(*_CIFAR.notes, "2.80 is the released checkpoint; the README promises about 2.9"),
    ),
}
