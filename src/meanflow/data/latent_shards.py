"""Shards of latents on disk: safetensors files, each with a small index beside it that says what belongs in it."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .errors import DataError
from .files import sha256_of, whole_file, write_text

HEADER, PLAN, SHARDS = "latents.json", "plan.json", "shards"
FORMAT = 1
STORED = {"F16": np.float16, "F32": np.float32, "I64": np.int64}  # names in the safetensors format
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Moments:
    """Sums over all values of each channel: what measured mean and standard deviation follow from."""

    values: int
    total: tuple[float, ...]
    square: tuple[float, ...]
    variance: tuple[float, ...]

    @classmethod
    def of(cls, mean: Tensor, std: Tensor | None) -> Moments:
        """Sums over posterior means and deviations [..., C, h, w], the latter None where there are none."""
        flat = mean.double().flatten(0, -4)  # [N, C, h, w]
        zeros = torch.zeros(flat.shape[1], dtype=torch.float64)
        variance = zeros if std is None else std.double().flatten(0, -4).square().sum((0, 2, 3))
        total, square = flat.sum((0, 2, 3)), flat.square().sum((0, 2, 3))
        return cls(flat[:, 0].numel(), tuple(total.tolist()), tuple(square.tolist()), tuple(variance.tolist()))

    def __add__(self, other: Moments) -> Moments:
        def added(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(x + y for x, y in zip(a, b, strict=True))

        return Moments(
            self.values + other.values,
            added(self.total, other.total),
            added(self.square, other.square),
            added(self.variance, other.variance),
        )

    def mean(self) -> tuple[float, ...]:
        return tuple(total / self.values for total in self.total)

    def std(self) -> tuple[float, ...]:
        """Of draws from the posterior: the variance of the means plus the mean variance."""
        parts = zip(self.square, self.variance, self.mean(), strict=True)
        return tuple(math.sqrt(max((s + v) / self.values - m**2, 0.0)) for s, v, m in parts)


@dataclass(frozen=True)
class Part:
    """The index of one shard."""

    rows: int
    size: int
    sha256: str
    skipped: tuple[str, ...]
    moments: Moments

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Part:
        sums = saved["moments"]
        moments = Moments(sums["values"], *(tuple(sums[name]) for name in ("total", "square", "variance")))
        return cls(saved["rows"], saved["size"], saved["sha256"], tuple(saved["skipped"]), moments)


def shard_path(root: Path, number: int) -> Path:
    return root / SHARDS / f"{number:06d}.safetensors"


def write_shard(root: Path, number: int, tensors: dict[str, Tensor], skipped: list[str]) -> Part:
    """Write a shard and then its index, each whole or not at all; raises OSError saying what to do."""
    path = shard_path(root, number)
    moments = Moments.of(tensors["mean"], tensors.get("std"))
    try:
        with whole_file(path) as aside:
            save_file(tensors, aside)
            part = Part(len(tensors["mean"]), aside.stat().st_size, sha256_of(aside), tuple(skipped), moments)
        write_text(path.with_suffix(".json"), json.dumps(part.to_dict(), indent=1))
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"could not write {path}: {error}. The shards before it are whole; free some space and give the same "
            f"command again"
        ) from error
    return part


def read_part(root: Path, number: int) -> Part | None:
    """The index of a shard, or None where it is missing or damaged."""
    try:
        return Part.from_dict(json.loads(shard_path(root, number).with_suffix(".json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_whole(root: Path, number: int) -> bool:
    """Whether a shard is there with every byte that was written."""
    part, path = read_part(root, number), shard_path(root, number)
    return part is not None and file_size(path) == part.size and sha256_of(path) == part.sha256


def file_size(path: Path) -> int | None:
    """Bytes of a file, None where there is none."""
    return path.stat().st_size if path.is_file() else None


def mapped(path: Path) -> Arrays:
    """The arrays of a safetensors file, memory-mapped. Raises DataError for a file that is none.

    Source of the format: 8 bytes length, so many of JSON with dtype, shape and offsets, then the values.
    """
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        return {
            name: np.memmap(
                path, STORED[entry["dtype"]], "r", 8 + length + entry["data_offsets"][0], tuple(entry["shape"])
            )
            for name, entry in header.items()
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise DataError(f"{path}: cannot be read as a shard of latents ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of this format; DataError naming the file otherwise."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    version = found.get("format") if isinstance(found, dict) else None
    if version != FORMAT:
        raise DataError(f"{path}: has format {version}, this version of meanflow reads {FORMAT}")
    return found
