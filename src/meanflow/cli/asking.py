"""The conditions, lengths and starting points that samples are asked for with, out of words and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._hint import did_you_mean
from ..core.conditions import KEPT, LABEL, MASK, NOISE, OBSERVATION, Cond, class_number
from ..core.masks import mask_from_lengths
from ..data.described import VECTOR
from ..data.files import read_npz
from .words import floats, numbers

About = Mapping[str, Mapping[str, Any]]


def read_given(file: Path | None) -> dict[str, Tensor]:
    """The arrays of an .npz, one row a sample, numbers only; a float64 becomes float32."""
    if file is None:
        return {}
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}; --given takes an .npz with an array for each condition")
    found = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in read_npz(file).items()}
    if not found or len({len(x) if x.ndim else 0 for x in found.values()} - {0}) != 1:
        raise ValueError(f"{file} must hold arrays with one row a sample, all of them as many; it has {_shapes(found)}")
    return {key: x.float() if x.is_floating_point() else x for key, x in found.items()}


def asked(
    about: About,
    given: Mapping[str, Tensor],
    words: Sequence[str],
    lengths: str | None,
    labels: list[int] | None,
    count: int,
    null: Any,
) -> Cond:
    """The condition of `count` samples; null: what stands for attributes nobody asked for, None where nothing does.

    Raises ValueError for a name or a value that the run does not know, and for one that it needs.
    """
    values = _values(words, about)
    unknown = [name for name in given if name not in {*about, NOISE}]
    if unknown:
        raise ValueError(f"the run has no condition {unknown[0]!r}{did_you_mean(unknown[0], about)}; {_known(about)}")
    if lengths is not None and MASK not in about:
        raise ValueError("--lengths is for runs on sequences of different lengths; leave it out")
    cond: dict[str, Any] = {}
    for name, one in about.items():
        if name in given:
            cond[name] = _fits(given[name][:count], name, one)
        elif name == MASK:
            cond[name] = _mask(lengths, int(one["longest"]), count)
        elif name == LABEL and labels is not None and name not in values:
            cond[name] = torch.tensor(labels)
        elif name in values:
            cond[name] = _column(name, values[name], one, count)
    _fill(cond, about, null, count)
    if cond.keys() == {LABEL} or cond.keys() == {VECTOR}:
        return next(iter(cond.values()))
    return cond or None


def _values(words: Sequence[str], about: About) -> dict[str, str]:
    """ "hair=dark" by name; a bare value is that of the only condition."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        names = [n for n in about if n not in (*KEPT, NOISE)]
        if not equals and len(names) == 1:
            name, value = names[0], word
        if name not in names or not value:
            raise ValueError(f"--cond takes NAME=VALUE, got {word!r}{did_you_mean(name, names)}; {_known(about)}")
        found[name] = value
    return found


def _column(name: str, text: str, one: Mapping[str, Any], count: int) -> Tensor:
    """The values of one attribute for all samples: sample s gets the one at place s modulo their number."""
    if "features" in one:
        row = torch.tensor(floats(text, f"cond {name}"))
        if one["features"] == 1:
            column = row[torch.arange(count) % len(row)]
            return column[:, None] if name == VECTOR else column
        if len(row) != one["features"]:
            raise ValueError(f"the condition {name!r} has {one['features']} numbers, got {len(row)}")
        return row.expand(count, -1)
    places = [class_number(part, one.get("classes"), one.get("names"), name) for part in text.split(",")]
    return torch.tensor(places)[torch.arange(count) % len(places)]


def _fill(cond: dict[str, Any], about: About, null: Any, count: int) -> None:
    """Put "no condition" for attributes if none of them was asked for; ValueError for what is missing otherwise."""
    files = [name for name in (OBSERVATION, NOISE) if name in about and name not in cond]
    if OBSERVATION in files:
        shape = about[OBSERVATION].get("shape")
        raise ValueError(f"this run needs an observation a sample: --given FILE.npz with {OBSERVATION!r} [N, {shape}]")
    says = [name for name in about if name not in (*KEPT, NOISE)]
    missing = [name for name in says if name not in cond]
    if missing and (null is None or len(missing) < len(says)):
        raise ValueError(f"this run needs --cond {' '.join(f'{name}=...' for name in missing)}; {_known(about)}")
    for name in missing:
        one: Any = null.get(name) if isinstance(null, dict) else null
        if "features" in about[name]:
            size = int(about[name]["features"])
            cond[name] = torch.full((count, size), float("nan")) if isinstance(null, dict) else torch.zeros(count, size)
        else:
            cond[name] = torch.full((count,), int(one))


def _mask(text: str | None, longest: int, count: int) -> Tensor:
    lengths = [longest] if text is None else numbers(text, "lengths")
    return mask_from_lengths([lengths[i % len(lengths)] for i in range(count)], longest)


def _fits(x: Tensor, name: str, one: Mapping[str, Any]) -> Tensor:
    if name == OBSERVATION and list(x.shape[1:]) != list(one["shape"]):
        raise ValueError(f"an observation has shape {one['shape']}, --given has {list(x.shape[1:])}")
    return x.bool() if name == MASK else x if x.is_floating_point() else x.long()


def _known(about: About) -> str:
    said = []
    for name, one in about.items():
        if name in (*KEPT, NOISE):
            continue
        names = one.get("names")
        if "features" in one:
            said.append(f"{name}: {one['features']} number{'s' * (one['features'] != 1)}")
        else:
            last = one.get("classes")
            said.append(f"{name}: " + (", ".join(names) if names else f"0 to {last - 1}" if last else "a whole number"))
    return "its conditions are " + "; ".join(said) if said else "it has none to be chosen"


def _shapes(found: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{key} {list(x.shape)}" for key, x in found.items()) or "none"
