"""A result: figures that never go without what they were made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from .metrics import Estimate, resampled
from .protocols import Protocol


@dataclass(frozen=True)
class Result:
    """What one network, or one set of images, reaches under one protocol.

    metrics, floor: value by name; the floor is what real images reach in place of samples. weights: which average of
    the weights. guidance: scale at sampling time and the one trained in, in words. seed: of the first sample.
    allowed: guards that were told to let pass what they stop. left_out: metric -> why it was not computed.
    """

    protocol: Protocol
    metrics: dict[str, float]
    floor: dict[str, float]
    steps: int | None
    times: tuple[float, ...] | None
    weights: str
    guidance: str
    seed: int | None
    samples: int
    images: int | None
    seconds: float
    allowed: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict, repr=False, compare=False)

    def title(self, metric: str | None = None) -> str:
        """Name of a metric, by default the first, with the number of samples, such as FID-50k or FD-pixels-2k."""
        metric = self.protocol.metrics[0] if metric is None else metric
        return f"{_symbol(metric, self.protocol.extractor)}-{short(self.samples)}"

    def interval(self, metric: str, *, level: float = 0.95, resamples: int = 200, seed: int = 0) -> tuple[float, float]:
        """Bootstrap confidence interval of a metric over its items (samples, or reference images for recall).

        Resampling repeats rows, which moves distances upwards; so the spread around the resamples' own mean is laid
        around the value. Raises ValueError for a result that came from JSON, which holds no samples.
        """
        if metric not in self.metrics:
            raise ValueError(f"this result has no metric {metric!r}, only {', '.join(self.metrics)}")
        if metric not in self.estimates:
            raise ValueError("a result that was read from a file keeps no samples; judge again to have intervals")
        draws = resampled(self.estimates[metric], resamples, seed)
        ends = torch.quantile(draws, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64))
        low, high = (ends - draws.mean() + self.metrics[metric]).tolist()
        return low, high

    def record(self) -> dict[str, Any]:
        """Everything but the items, JSON-able."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "estimates"}

    def to_json(self) -> str:
        """The record as text."""
        return json.dumps(self.record(), indent=1)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Result:
        """A result from its record; ValueError where it is none."""
        try:
            values = {**record, "protocol": Protocol.from_record(record["protocol"])}
            for name in ("times", "allowed"):
                values[name] = None if values[name] is None else tuple(values[name])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no result of this version of meanflow: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> Result:
        """The result that `to_json` wrote."""
        return cls.from_record(json.loads(text))

    def conditions(self) -> str:
        """What the figures were made with, in one line."""
        p = self.protocol
        calls = "given images" if self.steps is None else f"{self.steps} call{'s' * (self.steps != 1)}"
        parts = [f"protocol {p.name} v{p.version}", self.weights, calls, self.guidance, f"labels {p.labels}"]
        return ", ".join([*parts, *(f"ALLOWED: {name}" for name in self.allowed)])

    def __str__(self) -> str:
        names = list(self.metrics)
        first = [f"{self.title(name)} {self._figure(name)}" for name in names[:1]]
        rest = [f"{name} {self._figure(name)}" for name in names[1:]]
        return f"{', '.join([*first, *rest])} [{self.conditions()}]"

    def _figure(self, name: str) -> str:
        floor = f" (floor {self.floor[name]:.4g})" if name in self.floor else ""
        return f"{self.metrics[name]:.4g}{floor}"


NAMES = {"frechet": "FD", "kid": "KD", "inception_score": "IS", "sliced_wasserstein": "SW", "mmd": "MMD"}


def short(n: int) -> str:
    """2000 as 2k, 50000 as 50k, 1234 as 1234."""
    return f"{n // 1000}k" if n % 1000 == 0 and n else str(n)


def _symbol(metric: str, extractor: str) -> str:
    """FID and KID are kept for Inception features; everything else names its features."""
    if extractor == "inception":
        return {"frechet": "FID", "kid": "KID", "inception_score": "IS"}.get(metric, metric)
    return f"{NAMES.get(metric, metric)}-{extractor}"


def _plain(value: Any) -> Any:
    if isinstance(value, Protocol):
        return value.record()
    return list(value) if isinstance(value, tuple) else value
