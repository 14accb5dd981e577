"""What the conditions of a data set are: names, kinds and sizes, by which networks are built and samples asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..core.conditions import AUGMENT, LABEL, MASK, NOISE, OBSERVATION, Cond
from .dataset import Dataset
from .errors import DataError
from .streams import Stream

VECTOR = "vector"  # what a condition is called that is one vector a sample
SCANNED = 20_000  # our choice: samples looked at for the largest label and the spread of numbers
BLOCK = 256

About = dict[str, Any]


def conditions_of(data: Dataset, *, scan: bool = True) -> dict[str, About]:
    """By name, what each entry of the conditions is; empty for data without.

    {"classes": n} with "names" where they are known; {"features": n} with "mean" and "std"; for an observation
    {"channels": n, "shape": [...]}; for a mask {"longest": n}; for the e of pairs {}. A condition that is no dict is
    called "label" or "vector". scan: whether samples may be read for what is not known otherwise.
    Raises DataError for what built-in networks cannot take and for classes that cannot be known.
    """
    first = data.batch([0])[1]
    if first is None:
        return {}
    if isinstance(first, Tensor):
        name = LABEL if first.ndim == 1 and not first.is_floating_point() else VECTOR
        return {name: _about(data, name, first, lambda cond: cond, scan)}
    return {name: _about(data, name, value, lambda cond, n=name: cond[n], scan) for name, value in first.items()}


def network_options(conditions: Mapping[str, About]) -> dict[str, Any]:
    """How a built-in network is told of these conditions: classes, condition_features, attributes, observation."""
    says = {k: v for k, v in conditions.items() if k not in (MASK, NOISE, OBSERVATION, AUGMENT)}
    options: dict[str, Any] = {}
    if says.keys() == {LABEL}:
        options["classes"] = says[LABEL]["classes"]
    elif says.keys() == {VECTOR}:
        options["condition_features"] = says[VECTOR]["features"]
    elif says:
        options["attributes"] = {k: {n: v for n, v in about.items() if n != "names"} for k, about in says.items()}
    if OBSERVATION in conditions:
        options["observation"] = conditions[OBSERVATION]["channels"]
    return options


def _about(data: Dataset, name: str, value: Cond, pick: Any, scan: bool) -> About:
    if not isinstance(value, Tensor):
        raise DataError(
            f"the condition {name!r} is a dict of its own, which no built-in network takes; flatten it, or write a "
            "network that does (docs/own-code.md)"
        )
    if name == NOISE:
        return {}
    if name == MASK:
        return {"longest": value.shape[-1]}
    if name == OBSERVATION:
        return {"channels": value.shape[1], "shape": list(value.shape[1:])}
    if not value.is_floating_point() and value.ndim == 1:
        return _choice(data, name, pick, scan)
    if value.is_floating_point() and value.ndim <= 2:
        return _numbers(data, pick, 1 if value.ndim == 1 else value.shape[1], name == VECTOR or not scan)
    raise DataError(
        f"the condition {name!r} is {value.dtype} {list(value.shape[1:])} a sample; built-in networks take whole "
        f"numbers, floats and vectors of floats, and an image of the samples' size under the name {OBSERVATION!r}. "
        "Rename it, or write a network that takes it (docs/own-code.md)"
    )


def _choice(data: Dataset, name: str, pick: Any, scan: bool) -> About:
    """How many classes a label has: as the data say, else the largest that is found plus one."""
    known = (getattr(data, "values", None) or {}).get(name)
    classes: int | None
    if name == LABEL and data.classes is not None:
        known = known or data.class_names
        classes = data.classes
    elif known is not None:
        classes = len(known)
    elif not scan:
        classes = None
    elif isinstance(data, Stream):
        raise DataError(
            f"{data.source}: a stream cannot be searched for the number of classes of {name!r}; pass it as "
            "Stream(..., classes=n), or train on data with a length"
        )
    else:
        labels = _scanned(data, pick)
        if int(labels.min()) < 0:
            raise DataError(f"the condition {name!r} has the label {int(labels.min())}; renumber its labels from 0")
        classes = int(labels.max()) + 1
    return {"classes": classes, **({"names": list(known)} if known else {})}


def _numbers(data: Dataset, pick: Any, features: int, alone: bool) -> About:
    """Floats with the mean and deviation by which a network brings them to about N(0, 1)."""
    if alone or isinstance(data, Stream):
        return {"features": features}
    x = _scanned(data, pick).double().reshape(-1, features)
    std = x.std(0, correction=0)
    std = torch.where(std > 0, std, torch.ones_like(std))  # a constant stays what it is
    return {"features": features, "mean": x.mean(0).float().tolist(), "std": std.float().tolist()}


def _scanned(data: Dataset, pick: Any) -> Tensor:
    """One entry of the conditions of all samples, beyond 20,000 of evenly spread ones."""
    held = getattr(data, "conditions", None)
    if held is not None:
        return pick(held)
    count = min(len(data), SCANNED)
    index = torch.arange(count) * len(data) // count
    return torch.cat([pick(data.batch(part)[1]) for part in index.split(BLOCK)])
