"""What samples are compared with: features of real images, their statistics, and the floor."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data import DataError, Dataset, open_data
from ..data.files import read_npz
from .classifier import KernelClassifier
from .distances import Gaussian, Moments
from .features import Extractor, extractor
from .guards import Look
from .metrics import Material, Sample
from .protocols import Protocol
from .storage import hash_tensors, keep, kept

ONLY_MOMENTS = ("frechet", "inception_score")  # metrics that need no features of the reference
NEEDS_TRAIN = ("nearest", "copies")
BATCH = 1000
MOST_TRAIN = 3000  # our choice: training images of the kernel classifier, which is cubic in their number


@dataclass(frozen=True)
class Part:
    """Features of one split: their moments, and the features [N, D] where metrics need them; labels [N] if any."""

    moments: Moments
    look: Look
    features: Tensor | None
    labels: Tensor | None


@dataclass(frozen=True)
class Prepared:
    """A protocol as run, with all that judging under it needs.

    floor: what takes the place of samples, and what it is compared with.
    """

    protocol: Protocol
    extractor: Extractor
    material: Material
    look: Look | None
    floor: tuple[Sample, Material] | None


def prepared(
    p: Protocol,
    data: object = None,
    held_out: object = None,
    *,
    extractor_weights: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> Prepared:
    """Read the data of a protocol, extract features or take them from the cache, and fill in the record.

    Raises ValueError or DataError where data, weights or statistics do not fit.
    """
    if isinstance(data, (str, Path)) and (gaussian := read_statistics(Path(data))) is not None:
        return _from_statistics(p, gaussian, extractor_weights, device)
    sets = _opened(p, data, held_out)
    features = extractor(
        p.extractor, weights=extractor_weights, sha256=p.weights_sha256, device=device, train=sets.get("train")
    )
    _check_extractor(p, features)
    wanted = not set(p.metrics) <= set(ONLY_MOMENTS) or p.floor in ("halves", "train")
    parts = {split: part_of(data, features, p, wanted) for split, data in sets.items()}
    reference = parts[p.reference.split]
    material = Material(
        reference.moments.gaussian(),
        reference.features,
        parts["train"].features if "train" in parts and set(NEEDS_TRAIN) & set(p.metrics) else None,
        parts["held_out"].features if "held_out" in parts else None,
        _classifier(p, features, parts.get("train")),
    )
    run = _as_run(p, features, sets[p.reference.split], material.gaussian, reference.moments.count)
    run = replace(run, error=_error(features, material, parts.get("held_out")))
    return Prepared(run, features, material, reference.look, _floor(p, features, material, parts))


def read_statistics(path: Path) -> Gaussian | None:
    """Mean and covariance of a .npz with mu and sigma (of ADM, pytorch-fid, ...); None for any other file.

    ADM's own files hold 10,000 images (arr_0) beside the statistics; the statistics are the reference, not the images.
    Raises DataError for statistics that are none.
    """
    if path.suffix != ".npz" or not path.is_file():
        return None
    arrays = read_npz(path, only=("mu", "sigma"))  # the files of ADM hold 2 GB of images beside them
    if len(arrays) < 2:
        return None
    mean, covariance = (torch.from_numpy(arrays[name].astype(np.float64)) for name in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not bool(covariance.isfinite().all()):
        raise DataError(f"{path}: mu is {list(mean.shape)} and sigma {list(covariance.shape)}; wanted [D] and [D, D]")
    return Gaussian(mean, (covariance + covariance.T) / 2)


def _from_statistics(
    p: Protocol, gaussian: Gaussian, weights: str | Path | None, device: torch.device | str
) -> Prepared:
    features = extractor(p.extractor, weights=weights, sha256=p.weights_sha256, device=device)
    _check_extractor(p, features)
    record = replace(p.reference, statistics=statistics_hash(gaussian))
    return Prepared(
        replace(p, weights_sha256=features.sha256, reference=record), features, Material(gaussian), None, None
    )


def _opened(p: Protocol, data: object, held_out: object) -> dict[str, Dataset]:
    """The splits that this protocol uses, as far as they are there."""
    source = p.reference.source if data is None else data
    if source is None and held_out is None:
        or_file = ", or a .npz with mu and sigma" * (p.extractor == "inception")
        raise ValueError(
            f"the protocol {p.name} compares with {p.about.split(' against ')[-1]}, which you have to name with data=: "
            f"a folder or file that `open_data` takes{or_file}"
        )
    sets: dict[str, Dataset] = {}
    if source is not None:
        sets["train"] = open_data(source, split="train")
        if held_out is None:
            _try_held_out(p, source, sets)
    if held_out is not None:
        sets["held_out"] = open_data(held_out, split="all")
    if p.reference.split not in sets:
        raise ValueError(f"the protocol {p.name} compares with training images; name them with data=")
    for split, found in sets.items():
        if p.shape is not None and tuple(found.shape) != p.shape:
            raise ValueError(f"the protocol {p.name} is for images {p.shape}, the {split} images are {found.shape}")
    return sets


def _try_held_out(p: Protocol, source: object, sets: dict[str, Dataset]) -> None:
    try:
        sets["held_out"] = open_data(source, split="held_out")
    except DataError as error:
        if p.reference.split == "held_out":
            raise ValueError(
                f"the protocol {p.name} compares with held-out images, and {error}. If they lie elsewhere, name them "
                "with held_out="
            ) from error


def _check_extractor(p: Protocol, features: Extractor) -> None:
    if features.resize != p.resize:
        raise ValueError(
            f"the features {features.name} resize with {features.resize}, the protocol {p.name} with {p.resize}; "
            "distances of the two do not compare"
        )


def part_of(data: Dataset, features: Extractor, p: Protocol, wanted: bool) -> Part:
    """Features of a data set, from the cache where they are costly and were computed before."""
    fingerprint = data.description().get("fingerprint")
    about = {
        "version": 1,
        "data": fingerprint,
        "count": len(data),
        "extractor": [features.name, features.sha256, features.resize],
        "quantise": p.quantise,
        "features": wanted,
    }
    cached = features.costly and fingerprint is not None
    if cached and (found := kept("features", about)) is not None:
        tensors, extra = found
        moments = Moments(extra["count"], tensors["mean"], tensors["comoment"])
        return Part(moments, Look(**extra["look"]), tensors.get("features"), tensors.get("labels"))
    part = _extracted(data, features, p, wanted)
    if cached:
        tensors = {"mean": part.moments.mean, "comoment": part.moments.comoment}
        tensors |= {k: v for k, v in {"features": part.features, "labels": part.labels}.items() if v is not None}
        keep("features", about, tensors, {"count": part.moments.count, "look": asdict(part.look)})
    return part


def _extracted(data: Dataset, features: Extractor, p: Protocol, wanted: bool) -> Part:
    look = Look()
    moments: list[Moments] = []
    rows: list[Tensor] = []
    labels: list[Tensor] = []
    for start in range(0, len(data), BATCH):
        x, cond = data.batch(range(start, min(start + BATCH, len(data))))
        x = quantised(x, p.quantise)
        look = look + Look.at(x)
        f = features(x)
        moments.append(Moments.of(f))
        rows += [f] if wanted else []
        labels += [cond] if isinstance(cond, Tensor) and data.classes is not None else []
    return Part(
        Moments.total(moments),
        look,
        torch.cat(rows) if rows else None,
        torch.cat(labels) if labels else None,
    )


def quantised(x: Tensor, how: str | None) -> Tensor:
    """Images in [-1, 1] with the values that they have as uint8: rounded, or cut ("floor"), or left as they are."""
    if how is None:
        return x
    levels = (x.float().clamp(-1, 1) + 1) * 127.5
    # Values that are k / 127.5 - 1 already come back as k up to rounding, which a floor must not turn into k - 1.
    levels = levels.round() if how == "round" else (levels + 1e-3).floor()
    return levels / 127.5 - 1


def _classifier(p: Protocol, features: Extractor, train: Part | None) -> KernelClassifier | None:
    """For features that know no classes: kernel regression on those of the training images."""
    if "agreement" not in p.metrics or train is None or train.labels is None or train.features is None:
        return None
    if features.logits(train.features[:1]) is not None:
        return None
    rows = slice(None) if len(train.labels) <= MOST_TRAIN else slice(None, None, len(train.labels) // MOST_TRAIN)
    return KernelClassifier(train.features[rows], train.labels[rows], int(train.labels.max()) + 1)


def _error(features: Extractor, m: Material, held_out: Part | None) -> float | None:
    """Share of held-out images whose class the judge's own classifier gets wrong."""
    if held_out is None or held_out.labels is None or held_out.features is None:
        return None
    logits = features.logits(held_out.features)
    found = logits.argmax(1) if logits is not None else m.classify(held_out.features) if m.classify else None
    return None if found is None else float((found != held_out.labels).double().mean())


def _as_run(p: Protocol, features: Extractor, reference: Dataset, gaussian: Gaussian, count: int) -> Protocol:
    if p.reference.count is not None and count != p.reference.count and p.reference.source is not None:
        raise ValueError(f"the protocol {p.name} compares with {p.reference.count} images, these are {count}")
    source = str(reference.description().get("source", p.reference.source))
    record = replace(p.reference, source=source, count=count, statistics=statistics_hash(gaussian))
    return replace(p, weights_sha256=features.sha256, reference=record)


def statistics_hash(gaussian: Gaussian) -> str:
    """sha256 of mean and covariance as float64."""
    return hash_tensors({"mean": gaussian.mean, "covariance": gaussian.covariance})


def _floor(p: Protocol, features: Extractor, m: Material, parts: dict[str, Part]) -> tuple[Sample, Material] | None:
    """What takes the place of samples, and what it is compared with."""
    if p.floor == "train" and "train" in parts:
        train = parts["train"]
        # As many as samples, spread over the whole set, so that both have the same error of a finite number.
        rows = torch.arange(0, train.moments.count, max(1, train.moments.count // p.samples))[: p.samples]
        return _sample(features, train, rows), m
    reference = parts[p.reference.split]
    if p.floor != "halves" or reference.features is None:
        return None
    rows = torch.randperm(reference.moments.count, generator=torch.Generator().manual_seed(0))
    first, second = rows.tensor_split(2)
    half = reference.features[second]
    return _sample(features, reference, first), replace(m, gaussian=Gaussian.of(half), reference=half)


def _sample(features: Extractor, part: Part, rows: Tensor) -> Sample:
    assert part.features is not None
    chosen = part.features[rows]
    return Sample(chosen, part.labels[rows] if part.labels is not None else None, features.logits(chosen))
