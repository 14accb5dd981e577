"""Judging networks and images under a protocol."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import torch
from torch import Tensor, nn

from ..core.sampling import noise_for, sample
from . import guards as guard
from .guards import Guards, Look
from .metrics import METRICS, Estimate, Material, Missing, Sample
from .protocols import Protocol, protocol
from .references import NEEDS_TRAIN, prepared, quantised
from .result import Result

FIRST_SEED = 1_000_000
"""Seeds of judged samples start here, so that none of them is in the grids that training shows."""


class World(Interface):
    """The processes that judge together; training.parallel.World is one."""

    rank: int
    size: int

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes in the order of their ranks, on every one."""


@dataclass(frozen=True)
class Batch:
    """What is kept of a batch of samples: features [N, D], a digest for each, and a look at the values."""

    features: Tensor
    digests: list[bytes]
    look: Look


class Judge:
    """A protocol with its features and its reference prepared, so that many rows pay for them once.

    what: a protocol or its name. data: where training and held-out images lie, for protocols without data of their
    own: anything that `open_data` takes, or a .npz with mu and sigma. held_out: the held-out images, where they lie
    elsewhere. extractor_weights: path of the weights of the features. allow: names of guards that let pass.
    """

    def __init__(
        self,
        what: str | Protocol,
        *,
        data: object = None,
        held_out: object = None,
        extractor_weights: str | Path | None = None,
        device: torch.device | str = "cpu",
        allow: Collection[str] = (),
    ) -> None:
        chosen = protocol(what) if isinstance(what, str) else what
        self.guards = Guards(allow)
        ready = prepared(chosen, data, held_out, extractor_weights=extractor_weights, device=device)
        self.protocol, self.extractor, self.material = ready.protocol, ready.extractor, ready.material
        self._look = ready.look
        guard.check_reference(self.guards, self.material.frechet)
        self.floor = self._floor(*ready.floor) if ready.floor is not None else {}
        if "frechet" in self.floor:
            guard.check_floor(self.guards, self.floor["frechet"], self.material.gaussian)
        self._allowed_always = set(self.guards.fired)

    def row(
        self,
        net: nn.Module,
        *,
        steps: int | None = None,
        times: Sequence[float] | None = None,
        guidance: float | None = None,
        samples: int | None = None,
        first_seed: int = FIRST_SEED,
        batch: int = 500,
        world: World | None = None,
        weights: str = "weights as given",
        images: int | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
    ) -> Result:
        """Draw samples from a network and judge them; raises guards.Refused for figures that cannot be believed.

        steps or times: as of `sample`. guidance: scale at sampling time. samples: by default the protocol's number.
        Sample i comes from seed first_seed + i. weights, images: which average this is and how many images it has
        seen, for the record. decode: latents to images in [-1, 1]. world: processes that share the batches; every one
        returns the same result, and it is that of a single process.
        """
        start = self._begun()
        n = self.protocol.samples if samples is None else samples
        if n < 2:
            raise ValueError(f"at least 2 samples are needed for a distance, got {n}")
        classes = null if isinstance(null := getattr(net, "null", None), int) else None
        labels = labels_for(self.protocol.labels, n, classes, first_seed)

        def drawn(rows: range) -> Batch:
            x = draw_rows(net, rows, labels, steps=steps, times=times, guidance=guidance, first_seed=first_seed)
            return self._batch(x if decode is None else decode(x))

        batches = shared(drawn, n, batch, world)
        about = {
            "steps": len(times) - 1 if times is not None else steps or 1,
            "times": tuple(float(t) for t in times) if times is not None else None,
            "weights": weights,
            "guidance": guidance_words(net, guidance),
            "seed": first_seed,
            "images": images,
        }
        return self._judged(batches, labels, about, start)

    def images(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        value_range: tuple[float, float] = (-1, 1),
        weights: str = "images from elsewhere",
        from_files: bool = True,
        batch: int = 500,
    ) -> Result:
        """Judge images [N, C, H, W]: uint8, or floats in `value_range`, (-1, 1) or (0, 1).

        labels: [N] where classes were asked for. weights: where they come from, for the record. from_files: beside the
        guards of `row`, compare range and fine structure with those of the reference; False for samples straight from
        a network.
        """
        start = self._begun()
        x = as_floats(x, value_range)
        rows = [self._batch(part) for part in x.split(batch)]
        look = Look.total(b.look for b in rows)
        guard.check_values(self.guards, look, self._look, self.protocol.value_range, from_files=from_files)
        if from_files and self._look is not None:
            guard.check_texture(self.guards, look, self._look)
        about = {
            "steps": None,
            "times": None,
            "weights": weights,
            "guidance": "guidance unknown",
            "seed": None,
            "images": None,
        }
        return self._judged(rows, labels, about, start)

    def _begun(self) -> float:
        """The time, with no guard fired but those that the reference was let pass."""
        self.guards.fired = set(self._allowed_always)
        return time.perf_counter()

    def _batch(self, x: Tensor) -> Batch:
        p = self.protocol
        guard.check_shape(tuple(x.shape[1:]), p.shape, p.resize)
        x = x.float().cpu()
        return Batch(self.extractor(quantised(x, p.quantise)), guard.digests(x), Look.at(x))

    def _judged(self, batches: list[Batch], labels: Tensor | None, about: dict[str, Any], start: float) -> Result:
        features = torch.cat([b.features for b in batches])
        look = Look.total(b.look for b in batches)
        guard.check_finite(self.guards, look)
        guard.check_values(self.guards, look, self._look, self.protocol.value_range)
        guard.check_duplicates(self.guards, [digest for b in batches for digest in b.digests])
        guard.check_number(self.guards, len(features), features.shape[1], self.protocol.samples)
        estimates, left_out = self._estimates(Sample(features, labels, self.extractor.logits(features)), self.material)
        metrics = {name: e.value for name, e in estimates.items()}
        guard.check_belief(self.guards, metrics, self.floor.get("frechet"), self.material.gaussian)
        return Result(
            protocol=self.protocol if labels is not None else replace(self.protocol, labels="none"),
            metrics=metrics,
            floor=dict(self.floor),
            samples=len(features),
            seconds=time.perf_counter() - start,
            allowed=tuple(sorted(self.guards.fired)),
            left_out=left_out,
            estimates=estimates,
            **about,
        )

    def _estimates(self, s: Sample, m: Material) -> tuple[dict[str, Estimate], dict[str, str]]:
        found, left_out = dict[str, Estimate](), dict[str, str]()
        for name in self.protocol.metrics:
            try:
                found[name] = METRICS[name](s, m)
            except Missing as error:
                left_out[name] = str(error)
        return found, left_out

    def _floor(self, s: Sample, m: Material) -> dict[str, float]:
        found = self._estimates(s, m)[0]
        # Training images are their own nearest; where no held-out images tell the null, there is no such floor.
        known = {name: e for name, e in found.items() if e.null is not None or name not in NEEDS_TRAIN}
        return {name: e.value if e.null is None else e.null for name, e in known.items()}


def judge(net: nn.Module, what: str | Protocol, **options: Any) -> Result:
    """Judge one network once; the options are those of Judge and of Judge.row."""
    prepare = {name: options.pop(name) for name in _OPTIONS if name in options}
    return Judge(what, **prepare).row(net, **options)


def judge_images(x: Tensor, what: str | Protocol, labels: Tensor | None = None, **options: Any) -> Result:
    """Judge images once; the options are those of Judge and of Judge.images."""
    prepare = {name: options.pop(name) for name in _OPTIONS if name in options}
    return Judge(what, **prepare).images(x, labels, **options)


_OPTIONS = ("data", "held_out", "extractor_weights", "device", "allow")


def labels_for(kind: str, n: int, classes: int | None, seed: int) -> Tensor | None:
    """Labels [n] by the label protocol, None for a network without classes."""
    if classes is None or kind == "none":
        return None
    if kind == "balanced":
        return torch.arange(n) % classes
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


def draw(
    net: nn.Module, n: int, steps: int = 1, *, classes: int, first_seed: int = 0, batch: int = 500
) -> tuple[Tensor, Tensor]:
    """n samples with balanced classes, sample i from seed first_seed + i; x [n, *shape] and labels [n]."""
    labels = torch.arange(n) % classes
    rows = (range(i, min(i + batch, n)) for i in range(0, n, batch))
    return torch.cat([draw_rows(net, r, labels, steps=steps, first_seed=first_seed) for r in rows]), labels


def draw_rows(
    net: nn.Module,
    rows: range,
    labels: Tensor | None,
    *,
    steps: int | None = None,
    times: Sequence[float] | None = None,
    guidance: float | None = None,
    first_seed: int = FIRST_SEED,
) -> Tensor:
    """The samples of these rows, row i from seed first_seed + i and with labels[i]: [len(rows), *shape] on the CPU."""
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    cond = None if labels is None else labels[rows.start : rows.stop].to(device)
    noise = noise_for(net, (first_seed + i for i in rows), device, cond)
    return sample(net, noise, cond, steps=steps, times=times, guidance=guidance).cpu()


def shared(drawn: Callable[[range], Batch], n: int, batch: int, world: World | None) -> list[Batch]:
    """All batches in order: whole ones go round the processes.

    So a batch has the same rows whatever the number of processes, and its samples are the same to the last bit.
    """
    ranges = [range(i, min(i + batch, n)) for i in range(0, n, batch)]
    if world is None or world.size == 1:
        return [drawn(rows) for rows in ranges]
    mine: list[Batch] | Exception
    try:
        mine = [drawn(rows) for rows in ranges[world.rank :: world.size]]
    except Exception as error:  # sent to the others, so that none of them waits for this one
        mine = error
    parts = world.gather(mine)
    for part in parts:
        if isinstance(part, Exception):
            raise part
    return [parts[i % world.size][i // world.size] for i in range(len(ranges))]


def guidance_words(net: nn.Module, at_sampling: float | None) -> str:
    """Which guidance shaped the samples, in words."""
    if at_sampling is not None and at_sampling != 1:
        return f"guidance {at_sampling:g} at sampling"
    trained = getattr(net, "guidance", None)
    return "no guidance" if trained is None or trained.scale == 1 else f"guidance trained in ({trained})"


def as_floats(x: Tensor, value_range: tuple[float, float] = (-1, 1)) -> Tensor:
    """Images as floats in [-1, 1]; raises ValueError for another range, and guards.Refused for values outside."""
    if x.dtype == torch.uint8:
        return x.float() / 127.5 - 1
    if not x.is_floating_point():
        raise ValueError(f"images must be uint8 or floats, got {x.dtype}; convert them, e.g. x.to(torch.uint8)")
    if tuple(value_range) == (0, 1):
        guard.check_unit_range(x)
        return x.float() * 2 - 1
    if tuple(value_range) != (-1, 1):
        raise ValueError(f"float images lie in (-1, 1) or (0, 1), got value_range={value_range}; or pass uint8")
    return x.float()
