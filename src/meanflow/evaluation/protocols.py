"""Protocols: named records of everything that a figure of quality depends on besides the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .._hint import did_you_mean

INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of pt_inception-2015-12-05-6726825d.pth (github.com/mseitzer/pytorch-fid); the first eight digits are in its name."""
RESNET56_SHA256 = "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367"
"""Of resnet56-4bfd9763.th (github.com/akamaster/pytorch_resnet_cifar10)."""


@dataclass(frozen=True)
class Reference:
    """What samples are compared with.

    source: name or path of the data, None where the user's own copy has to be named. split: "train" or "held_out".
    count: number of images, None for all there are. statistics: sha256 of mean and covariance, filled in as run.
    """

    source: str | None
    split: str
    count: int | None = None
    statistics: str | None = None


@dataclass(frozen=True)
class Protocol:
    """How samples are judged; two results compare only where these records are equal.

    extractor: name of the features. weights_sha256: beginning of the hash of their weights, None where they have
    none. resize: filter and size by which images reach the extractor. quantise: "round" or "floor" to 256 values, or
    None. value_range: of the images that the extractor's input is made from. floor: "train" judges the training
    images in place of samples, "halves" one half of the reference against the other. labels: "balanced", "random" or
    "none". shape, classes: of the samples, None where any will do. error: share of held-out images whose class the
    classifier of the judge gets wrong, measured as run.
    """

    name: str
    version: int
    extractor: str
    weights_sha256: str | None
    resize: str
    quantise: str | None
    value_range: tuple[float, float] | None
    samples: int
    reference: Reference
    floor: str
    labels: str
    metrics: tuple[str, ...]
    shape: tuple[int, ...] | None
    classes: int | None
    about: str
    error: float | None = None

    def record(self) -> dict[str, Any]:
        """The record, JSON-able."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Protocol:
        """The protocol of a record that came from JSON; ValueError where fields are missing or unknown."""
        try:
            values = {**record, "reference": Reference(**record["reference"])}
            for name in ("value_range", "metrics", "shape"):
                values[name] = None if values[name] is None else tuple(values[name])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no record of a protocol of this version of meanflow: {error}") from error


MANIFOLD = ("precision", "recall", "density", "coverage")

PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol(
            name="imagenet256-adm",
            version=1,
            extractor="inception",
            weights_sha256=INCEPTION_SHA256,
            resize="tf1-bilinear-299",
            quantise="round",
            value_range=(0, 255),
            samples=50_000,
            reference=Reference(None, "train"),
            floor="none",
            labels="random",
            metrics=("frechet", "inception_score"),
            shape=(3, 256, 256),
            classes=1000,
            about="FID of ImageNet 256x256 against the statistics file of ADM (VIRTUAL_imagenet256_labeled.npz)",
        ),
        Protocol(
            name="cifar10-train",
            version=1,
            extractor="inception",
            weights_sha256=INCEPTION_SHA256,
            resize="tf1-bilinear-299",
            quantise="round",
            value_range=(0, 255),
            samples=50_000,
            reference=Reference(None, "train", 50_000),
            floor="halves",
            labels="random",
            metrics=("frechet", "kid", "inception_score"),
            shape=(3, 32, 32),
            classes=10,
            about="FID of CIFAR-10 against its 50,000 training images, as papers report it",
        ),
        Protocol(
            name="cifar10-resnet56",
            version=1,
            extractor="resnet56",
            weights_sha256=RESNET56_SHA256,
            resize="none",
            quantise="round",
            value_range=(0, 1),
            samples=10_000,
            reference=Reference(None, "held_out"),
            floor="halves",
            labels="balanced",
            metrics=("frechet", "kid", "inception_score", *MANIFOLD, "agreement", "nearest", "copies"),
            shape=(3, 32, 32),
            classes=10,
            about="64 pooled features of a CIFAR-10 classifier, against held-out images; not FID",
        ),
        Protocol(
            name="fashion-mnist",
            version=1,
            extractor="fashion-cnn",
            weights_sha256=None,
            resize="none",
            quantise="round",
            value_range=(-1, 1),
            samples=10_000,
            reference=Reference(None, "held_out", 10_000),
            floor="train",
            labels="balanced",
            metrics=("frechet", "kid", "inception_score", *MANIFOLD, "agreement", "nearest", "copies"),
            shape=(1, 28, 28),
            classes=10,
            about="features of a small classifier trained on the training images, against the test images; not FID",
        ),
        Protocol(
            name="digits",
            version=1,
            extractor="pixels",
            weights_sha256=None,
            resize="none",
            quantise=None,
            value_range=(-1, 1),
            samples=2000,
            reference=Reference("digits", "held_out", 359),
            floor="train",
            labels="balanced",
            metrics=("frechet", "kid", *MANIFOLD, "agreement", "nearest", "copies"),
            shape=(1, 8, 8),
            classes=10,
            about="64 pixels in [-1, 1], against 359 held-out images; not FID",
        ),
        Protocol(
            name="own-images",
            version=1,
            extractor="pixels-8x8",
            weights_sha256=None,
            resize="none",
            quantise="round",
            value_range=(-1, 1),
            samples=5000,
            reference=Reference(None, "train"),
            floor="halves",
            labels="balanced",
            metrics=("frechet", "kid", *MANIFOLD, "agreement", "nearest", "copies"),
            shape=None,
            classes=None,
            about="images averaged to 8x8 pixels, against the training images; ranks runs of one data set, not FID",
        ),
        Protocol(
            name="vectors",
            version=1,
            extractor="pixels",
            weights_sha256=None,
            resize="none",
            quantise=None,
            value_range=None,
            samples=5000,
            reference=Reference(None, "train"),
            floor="halves",
            labels="balanced",
            metrics=("sliced_wasserstein", "mmd", *MANIFOLD, "nearest"),
            shape=None,
            classes=None,
            about="the values themselves, against the training vectors",
        ),
    )
}

# Words in the name of a data source that tell which protocol belongs to it; the first that fits counts.
SOURCES = {"digits": "digits", "fashion": "fashion-mnist", "cifar10": "cifar10-train", "cifar-10": "cifar10-train"}


def protocol(name: str) -> Protocol:
    """The built-in protocol of this name; ValueError that names the nearest one."""
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    hint = did_you_mean(name.lower(), PROTOCOLS, "; choose one of them")
    raise ValueError(f"there is no protocol {name!r} (known: {', '.join(PROTOCOLS)}){hint}")


def protocol_for(source: str | Mapping[str, Any]) -> Protocol:
    """The protocol that belongs to data, told by their source or by the `description()` of the data set.

    Of a description the shape decides where no word of the source does: own-images, or vectors. Raises ValueError where
    none belongs to them; then one has to be named.
    """
    name = str(source.get("source", "")) if isinstance(source, Mapping) else source
    for word, fitting in SOURCES.items():
        if word in name.lower() and not _of_other_shape(source, fitting):
            return PROTOCOLS[fitting]
    shape = tuple(source.get("shape", ())) if isinstance(source, Mapping) else ()
    if len(shape) == 1 or (len(shape) == 3 and shape[0] in (1, 3)):
        return PROTOCOLS["vectors" if len(shape) == 1 else "own-images"]
    raise ValueError(
        f"no protocol belongs to data from {name or 'an unknown source'}; name one of {', '.join(PROTOCOLS)}"
    )


def _of_other_shape(source: str | Mapping[str, Any], name: str) -> bool:
    shape = source.get("shape") if isinstance(source, Mapping) else None
    return shape is not None and tuple(shape) != PROTOCOLS[name].shape
