"""Judging networks and images under a protocol."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from typing import Protocol as Interface

import torch
from torch import Tensor, nn

from ..core.sampling import noise_from_seeds, sample
from .metrics import METRICS, Sample
from .protocols import Protocol, protocol
from .references import prepared
from .result import Result

FIRST_SEED = 1_000_000
"""Seeds of judged samples start here, so that none of them is in the grids that training shows."""


class World(Interface):
    """The processes that judge together; training.parallel.World is one."""

    rank: int
    size: int

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes in the order of their ranks, on every one."""


class Judge:
    """A protocol with its features and its reference prepared, so that many rows pay for them once.

    what: a protocol or its name. data: where training and held-out images lie, for protocols without data of their
    own; anything that `open_data` takes. held_out: the same, where the held-out images lie elsewhere.
    """

    def __init__(
        self,
        what: str | Protocol,
        *,
        data: object = None,
        held_out: object = None,
        device: torch.device | str = "cpu",
    ) -> None:
        chosen = protocol(what) if isinstance(what, str) else what
        self.protocol, self.extractor, self.material, floor_sample = prepared(chosen, data, held_out, device)
        self.floor = self._floor(floor_sample)

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
        """Draw samples from a network and judge them.

        steps or times: as of `sample`. guidance: scale at sampling time. samples: by default the protocol's number.
        Sample i comes from seed first_seed + i. weights, images: which average this is and how many images it has
        seen, for the record. decode: latents to images in [-1, 1]. world: processes that share the batches; every one
        returns the same result, and it is that of a single process.
        """
        start = time.perf_counter()
        n = samples or self.protocol.samples
        classes = null if isinstance(null := getattr(net, "null", None), int) else None
        labels = labels_for(self.protocol.labels, n, classes, first_seed)
        x = draw_rows(
            net, labels if labels is not None else n, steps=steps, times=times, guidance=guidance,
            first_seed=first_seed, batch=batch, world=world,
        )  # fmt: skip
        if decode is not None:
            x = torch.cat([decode(part) for part in x.split(batch)])
        calls = len(times) - 1 if times is not None else steps or 1
        about = {
            "steps": calls,
            "times": tuple(float(t) for t in times) if times is not None else None,
            "weights": weights,
            "guidance": guidance_words(net, guidance),
            "seed": first_seed,
            "images": images,
        }
        return self._judged(x, labels, about, start)

    def images(self, x: Tensor, labels: Tensor | None = None, *, weights: str = "source unknown") -> Result:
        """Judge images [N, C, H, W]: uint8, or floats in [-1, 1]; labels [N] where classes were asked for."""
        start = time.perf_counter()
        x = x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x
        about = {"steps": None, "times": None, "weights": weights, "guidance": "guidance unknown", "seed": None,
                 "images": None}  # fmt: skip
        return self._judged(x, labels, about, start)

    def _judged(self, x: Tensor, labels: Tensor | None, about: dict[str, Any], start: float) -> Result:
        features = self.extractor(x)
        estimates, left_out = self._estimates(Sample(features, labels, self.extractor.logits(features)))
        if labels is None:
            about["guidance"] = about["guidance"]
        return Result(
            protocol=replace(self.protocol, labels=self.protocol.labels if labels is not None else "none"),
            metrics={name: e.value() for name, e in estimates.items()},
            floor=dict(self.floor),
            samples=len(x),
            seconds=time.perf_counter() - start,
            left_out=left_out,
            estimates=estimates,
            **about,
        )

    def _estimates(self, s: Sample) -> tuple[dict[str, Any], dict[str, str]]:
        found = {name: METRICS[name](s, self.material) for name in self.protocol.metrics if name in METRICS}
        left_out = {name: "needs what this protocol's data do not have" for name, e in found.items() if e is None}
        return {name: e for name, e in found.items() if e is not None}, left_out

    def _floor(self, s: Sample | None) -> dict[str, float]:
        if s is None:
            return {}
        values = {name: e.value() for name, e in self._estimates(s)[0].items()}
        if self.material.held_out is not None and "nearest" in values:
            values["nearest"] = METRICS["nearest"](Sample(self.material.held_out), self.material).value()  # type: ignore[union-attr]
        return values


def judge(net: nn.Module, what: str | Protocol, *, device: torch.device | str = "cpu", **options: Any) -> Result:
    """Judge one network once; the options are those of Judge and of Judge.row."""
    about = {name: options.pop(name) for name in ("data", "held_out") if name in options}
    return Judge(what, device=device, **about).row(net, **options)


def judge_images(x: Tensor, what: str | Protocol, labels: Tensor | None = None, **options: Any) -> Result:
    """Judge images once; the options are those of Judge."""
    return Judge(what, **options).images(x, labels)


def labels_for(kind: str, n: int, classes: int | None, seed: int) -> Tensor | None:
    """Labels [n] by the label protocol, None for a network without classes."""
    if classes is None or kind == "none":
        return None
    if kind == "balanced":
        return torch.arange(n) % classes
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


def draw_rows(
    net: nn.Module,
    labels: Tensor | int,
    *,
    steps: int | None = None,
    times: Sequence[float] | None = None,
    guidance: float | None = None,
    first_seed: int = FIRST_SEED,
    batch: int = 500,
    world: World | None = None,
) -> Tensor:
    """A sample for each label [n] (or n without condition), sample i from seed first_seed + i: [n, *shape] on the CPU.

    Whole batches go round the processes, so each has the same rows whatever their number, and the samples are the
    same to the last bit.
    """
    device = next(net.parameters()).device
    n = labels if isinstance(labels, int) else len(labels)

    def drawn(start: int) -> Tensor:
        rows = range(start, min(start + batch, n))
        noise = noise_from_seeds((first_seed + i for i in rows), net.shape, device)  # type: ignore[arg-type]
        cond = None if isinstance(labels, int) else labels[rows.start : rows.stop].to(device)
        return sample(net, noise, cond, steps=steps, times=times, guidance=guidance).cpu()

    starts = range(0, n, batch)
    if world is None or world.size == 1:
        return torch.cat([drawn(i) for i in starts])
    parts = world.gather([drawn(i) for i in starts[world.rank :: world.size]])
    return torch.cat([parts[i % world.size][i // world.size] for i in range(len(starts))])


def guidance_words(net: nn.Module, at_sampling: float | None) -> str:
    """Which guidance shaped the samples, in words."""
    if at_sampling is not None and at_sampling != 1:
        return f"guidance {at_sampling:g} at sampling"
    trained = getattr(net, "guidance", None)
    return "no guidance" if trained is None or trained.scale == 1 else f"guidance trained in ({trained})"
