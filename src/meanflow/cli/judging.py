"""What evaluate and compare share: their options, and how runs and images become rows of one protocol."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor, nn

from ..core.conditions import LABEL
from ..data.files import read_npz
from ..evaluation import Judge, Protocol, protocol, protocol_for
from ..evaluation.guards import Refused, check_folder
from ..evaluation.report import Row, Subject
from ..training.parallel import World
from ..training.run import pick_device, read_config
from ..training.subjects import averages, decoder, images_seen, loaded, run_data, subject_of, weights_words
from .words import at_least_one, numbers

TIMEOUT = 3600  # seconds that a process waits for the samples of another; our choice
FEWEST = 100  # samples; with fewer a distance says nothing
NONE = "none"


@dataclass
class Judging:
    """Options of the commands that judge."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, e.g. a run and its flow-matching baseline; also an .npz of samples, or a folder of PNGs."""
    steps: str = "1,2,4"
    """Numbers of network calls."""
    protocol: str | None = None
    """How to judge, by name; by default what belongs to the data of each run. Converted runs do not know their data.
    none makes a report without figures."""
    samples: int | None = None
    """Samples drawn for each row; the protocol's number by default."""
    ema: str | None = None
    """Averaged weights to use: a decay such as 0.999, power:0.075 for one rebuilt to that length, raw for those without
    averaging, several with commas, or all; each run's first average by default."""
    net: str | None = None
    """PATH.py:NAME or module:NAME of the network, for runs that were trained with your own; executes that file."""
    data: str | None = None
    """Where the training data of the protocol lie, or a .npz with mu and sigma; by default those of the first run."""
    held_out: str | None = None
    """Where the held-out data of the protocol lie, where that is elsewhere."""
    extractor_weights: Path | None = None
    """Weights of the feature network, for protocols that have one."""
    allow: str | None = None
    """Guards that let pass what they would refuse, with commas; it stays part of the result."""
    vae: str | None = None
    """Autoencoder that decodes the samples of a latent run, where it is no longer at the path of the run's latents."""
    guidance: float | None = None
    """Guidance scale at sampling time, for runs that were trained without guidance inside."""
    resamples: int | None = None
    """Bootstrap draws of an interval, 0 for none; 200 by default, or none where they would take many minutes."""
    batch: int = 500
    """Samples per network call."""
    out: Path | None = None
    """Folder of the report; by default `report` inside the run."""
    json: bool = False
    """Print one JSON object instead of a table."""
    device: str = "auto"
    """Device: cpu, cuda, or auto for the first GPU where there is one."""


class Bench:
    """Runs and images on the table of one judge."""

    def __init__(self, s: Judging, command: str, world: World) -> None:
        if not s.runs:
            raise ValueError(f"name at least one run folder, e.g. meanflow {command} runs/digits")
        at_least_one(batch=s.batch)
        if s.resamples is not None and s.resamples < 0:
            raise ValueError(f"--resamples must be 0 or more, got {s.resamples}")
        self.s, self.world, self.steps = s, world, numbers(s.steps, "steps")
        if min(self.steps) < 1 or (s.samples is not None and s.samples < FEWEST):
            raise ValueError(
                f"steps must be at least 1 and samples at least {FEWEST}, got {self.steps} and {s.samples}"
            )
        self.device = pick_device(s.device)
        self.names = dict(zip(s.runs, names_of(s.runs), strict=True))
        self.judge = self._judge()

    @property
    def folders(self) -> list[Path]:
        """Those of the names that are runs."""
        return [path for path in self.s.runs if not is_images(path)]

    def subjects(self) -> list[Subject]:
        """What the reports on the runs need, with the first of the weights asked for."""
        return [
            subject_of(
                path, averages(path, self.s.ema)[0], self.device, vae=self.s.vae, name=self.names[path], own=self.s.net
            )
            for path in self.folders
        ]

    def rows(self, path: Path) -> list[Row]:
        """Results of a run for each of its averages and numbers of calls, or the one of given images."""
        if self.judge is None:
            return []
        if is_images(path):
            if path.is_dir():
                check_folder(self.judge.guards, sorted(path.glob("*.png")))
            x, labels = read_images(path)
            return [
                self._row(path, self.judge.images(x, labels, weights=str(path), from_files=not x.is_floating_point()))
            ]
        found = []
        for weights in averages(path, self.s.ema):
            net = loaded(path, weights, self.device, self.s.net)
            check_fits(self.judge.protocol, net, path)
            found += [self._row(path, self._drawn(path, net, weights, n)) for n in self.steps]
        return found

    def history(self, path: Path, subject: Subject, most: int = 12) -> list[Row]:
        """Results with one call at earlier checkpoints, no more than `most` (our choice), evenly chosen."""
        if self.judge is None:
            return []
        kept = list(subject.history)
        chosen = kept if len(kept) <= most else [kept[round(i * (len(kept) - 1) / (most - 1))] for i in range(most)]
        weights = averages(path, self.s.ema)[0]
        found = []
        for images, load in chosen:
            with suppress(Refused):  # an early checkpoint may make what no guard believes
                result = self._drawn(path, load(), weights, 1, images)
                first = list(result.metrics)[:1]
                found.append(Row.of(self.names[path], result, str(path), self.s.resamples, first))
        return found

    def _judge(self) -> Judge | None:
        chosen = self._protocol()
        if chosen is None:
            return None
        data, held_out = self._reference(chosen)
        return Judge(
            chosen, data=data, held_out=held_out, extractor_weights=self.s.extractor_weights, device=self.device,
            allow=self.s.allow.split(",") if self.s.allow else (),
        )  # fmt: skip

    def _reference(self, p: Protocol) -> tuple[Any, Any]:
        """Training and held-out data: those named, else the protocol's own, else those of the first run."""
        if self.s.data is not None or p.reference.source is not None:
            return self.s.data, self.s.held_out
        if not self.folders:
            raise ValueError(f"the protocol {p.name} has no data of its own; name them with --data")
        config = read_config(self.folders[0])
        if config["data"].get("latents"):
            raise ValueError(
                f"{self.folders[0]} was trained on latents, and its samples are judged as images; name the images "
                "with --data"
            )
        train, held_out, why = run_data(config)
        if train is None:
            raise ValueError(
                f"the protocol {p.name} compares with the run's own data, but {why}; name them with --data, or name "
                "another protocol, e.g. --protocol digits; --protocol none makes a report without figures"
            )
        return train, self.s.held_out or held_out

    def _protocol(self) -> Protocol | None:
        if self.s.protocol == NONE:
            return None
        if self.s.protocol is not None:
            return protocol(self.s.protocol)
        if not self.folders:
            raise ValueError("images alone do not say how to judge them; name a protocol, e.g. --protocol digits")
        found = {path: _belonging(path) for path in self.folders}
        names = {p.name for p in found.values()}
        if len(names) > 1:
            told = ", ".join(f"{path}: {p.name}" for path, p in found.items())
            raise ValueError(f"these runs belong to different protocols ({told}); name the one to judge all by")
        return next(iter(found.values()))

    def _row(self, path: Path, result: Any) -> Row:
        return Row.of(self.names[path], result, str(path), self.s.resamples)

    def _drawn(self, path: Path, net: nn.Module, weights: str, steps: int, images: int | None = None) -> Any:
        assert self.judge is not None
        return self.judge.row(
            net, steps=steps, guidance=self.s.guidance, samples=self.s.samples, batch=self.s.batch, world=self.world,
            weights=weights_words(weights), images=images_seen(path, weights) if images is None else images,
            decode=self._decoder(net),
        )  # fmt: skip

    def _decoder(self, net: nn.Module) -> Callable[[Tensor], Tensor] | None:
        return decoder(net, self.device, self.s.vae)


@contextmanager
def guards_told() -> Iterator[None]:
    """A refusal by a guard names the option that would let it pass."""
    try:
        yield
    except Refused as error:
        reason = str(error).split(". To have")[0]
        way = f". To have the figure all the same: --allow {error.guard}" if error.allowable else ""
        raise ValueError(f"{reason}{way}") from error


def names_of(paths: Sequence[Path]) -> list[str]:
    """Names of the folders, or whole paths where two have the same name; ValueError for a path named twice."""
    if len(set(paths)) < len(paths):
        raise ValueError(f"a run is named twice: {', '.join(map(str, paths))}")
    short = [path.absolute().name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def is_images(path: Path) -> bool:
    """Whether a path is an archive or a folder of samples and no run."""
    if path.is_dir() and not (path / "config.json").exists():
        return any(path.glob("*.png"))
    return path.suffix == ".npz"


def read_images(path: Path) -> tuple[Tensor, Tensor | None]:
    """Samples [N, C, H, W] of `meanflow sample`: x and labels of an .npz, or PNGs named NUMBER-classK.png."""
    if path.suffix == ".npz":
        arrays = read_npz(path)
        if "x" not in arrays:
            raise ValueError(f"{path} holds {', '.join(arrays) or 'nothing'}; samples are expected under the name x")
        return torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["labels"]) if "labels" in arrays else None
    files = sorted(path.glob("*.png"))
    arrays_ = [np.asarray(Image.open(file)) for file in files]
    shapes = {a.shape for a in arrays_}
    if len(shapes) > 1 or arrays_[0].dtype != np.uint8:
        raise ValueError(f"the PNGs of {path} are not all of one size and 8 bits: {sorted(map(str, shapes))[:4]}")
    stack = torch.from_numpy(np.stack(arrays_))
    x = stack[:, None] if stack.ndim == 3 else stack.permute(0, 3, 1, 2)
    labels = [re.search(r"-class(\d+)$", file.stem) for file in files]
    return x, torch.tensor([int(m[1]) for m in labels if m]) if all(labels) else None


def check_fits(p: Protocol, net: Any, path: Path) -> None:
    """ValueError when a network makes other samples than the protocol is for; latents are seen once decoded."""
    if net.source is not None or net.conditions.keys() - {LABEL}:
        raise ValueError(
            f"a protocol draws its samples from N(0, I) and classes, {path} was trained with more (its source, or a "
            "condition that is no class); draw samples with `meanflow sample` and judge the .npz"
        )
    shape, null = tuple(net.shape), getattr(net, "null", None)
    classes = null if isinstance(null, int) else None
    decoded = getattr(net, "latents", None) is not None
    wrong_shape = p.shape is not None and shape != p.shape and not decoded
    if wrong_shape or (p.classes is not None and classes != p.classes):
        raise ValueError(
            f"the protocol {p.name} is for samples {p.shape} of {p.classes} classes, {path} makes {shape} of "
            f"{classes} classes"
        )


def _belonging(path: Path) -> Protocol:
    try:
        return protocol_for(read_config(path)["data"])
    except ValueError as error:
        raise ValueError(
            f"{path}: {error}, e.g. --protocol digits; --protocol none makes a report without figures"
        ) from error
