"""meanflow train."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from ..data import Dataset, open_data
from ..objectives import Objective
from ..own import blamed, named
from ..recipes import Recipe, build, cost, default_name, notices, recipe
from ..training import Run, fit
from ..training.speed import flops_per_image
from .own_data import open_own
from .words import first_process, option, parse, settings_text


@dataclass
class Train:
    """Train a one-step generator. The same command again resumes an interrupted run.

    The options below override a recipe: the one of --recipe NAME, or one that fits the data. The defaults shown are
    those of --recipe NAME where it is given, else of the recipe dit-tiny; `meanflow recipes show NAME` prints others.
    """

    data: tyro.conf.Positional[str | None] = None
    """digits, or a folder or file of images, latents, arrays or numbers (docs/data.md lists all kinds)."""
    own_data: Annotated[str | None, tyro.conf.arg(name="data")] = None
    """Instead, data of your own code: PATH.py:NAME or module:NAME of a data set, or of what makes one
    (docs/own-code.md)."""
    own_net: Annotated[str | None, tyro.conf.arg(name="net")] = None
    """A network of your own code, PATH.py:NAME or module:NAME, instead of the recipe's (docs/own-code.md)."""
    recipe: str | None = None
    """Recipe to start from (see `meanflow recipes`); by default one that fits the data."""
    variant: Annotated[Literal["paper", "code"] | None, tyro.conf.arg(name="as")] = None
    """For recipes of the paper: as the paper says, or as the authors' code does."""
    ablation: str | None = None
    """A cell of the paper's ablations, e.g. a:50, with --recipe imagenet-b4; `meanflow recipes show` lists them."""
    out: Path | None = None
    """Run folder; by default runs/ and the name of the data."""
    size: int | None = None
    """Side to which images of a folder are resized and cropped."""
    mode: str | None = None
    """RGB or L (grey), for a folder that mixes both."""
    skip_broken: bool = False
    """Leave out unreadable images instead of stopping."""
    split: str = "train"
    """Part of data that have a held-out part: train, held_out or all."""
    cond: str | None = None
    """Columns that are conditions, with commas between; none for no conditions."""
    workers: int = 0
    """Processes that read data beside this one; 0 reads in threads."""
    dry_run: bool = False
    """Only print the settings, the number of parameters and the cost of a step."""
    settings: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    """The recipe's settings."""


def run(words: list[str]) -> int:
    """Train, or print what would be done."""
    # The recipe decides the defaults; data of another kind than guessed here parse once more below.
    guess = option(words, "--recipe") or ("digits" if "digits" in words else "dit-tiny")
    s = _parsed(words, guess)
    _check_own(s, words)
    with blamed(_files(s)):
        return _train(s, words, guess)


def _train(s: Train, words: list[str], guess: str) -> int:
    dataset = _data(s)
    name = s.recipe or default_name(dataset, s.data or "")
    if name != guess:
        s = _parsed(words, name)
    for line in _notices(s, name, dataset, words) if first_process() else []:
        print(f"note: {line}", file=sys.stderr)
    objective = build(s.settings, dataset, s.own_net, empty=s.dry_run and usual(dataset))
    out = s.out or Path("runs") / _stem(s)
    if s.dry_run:
        print(_dry_run(s.settings, name, objective, dataset, s.own_net is not None))
        return 0
    if first_process():
        _introduce(name, objective, dataset, out)
    done = fit(objective, dataset, out=out, training=s.settings.training, code=_code(s))
    if first_process():
        _conclude(done, s)
    return 0 if done.stopped is None else 128 + signal.Signals[done.stopped]


def _check_own(s: Train, words: list[str]) -> None:
    """ValueError unless it is clear which data are meant, and whose network."""
    if (s.data is None) == (s.own_data is None):
        raise ValueError(
            "name the data to train on, e.g. meanflow train digits, or --data PATH.py:NAME for data of your own code"
            + ("; not both" if s.data else "")
        )
    of_recipe = next((word for word in words if word.startswith("--net.")), None)
    if s.own_net is not None and of_recipe is not None:
        raise ValueError(
            f"{of_recipe} is a setting of the recipe's network, but --net {s.own_net} takes your own; leave one out"
        )


def _data(s: Train) -> Dataset:
    options = {"size": s.size, "mode": s.mode, "skip_broken": s.skip_broken, "cond": s.cond, "workers": s.workers}
    if s.own_data is not None:
        return open_own(s.own_data, s.split, **options)
    return open_data(s.data, split=s.split, **options)  # type: ignore[arg-type]


def _stem(s: Train) -> str:
    """The name of the data, of which the run folder has its own by default."""
    return Path(s.data).absolute().stem if s.data is not None else str(s.own_data).rpartition(":")[2].lower()


def _code(s: Train) -> dict[str, dict[str, str]]:
    """Where network and data of the user's own code came from."""
    return {what: named(target).record() for what, target in (("net", s.own_net), ("data", s.own_data)) if target}


def _files(s: Train) -> list[Path]:
    return [named(target).path for target in (s.own_net, s.own_data) if target]


def _conclude(done: Run, s: Train) -> None:
    """How the run ended, and what to do next."""
    if done.stopped is not None:
        print(f"stopped by {done.stopped} after {done.images:,} images; saved. The same command again goes on.")
        return
    grids = f"the newest grid in {done.folder / 'grids'}"
    judge = f"meanflow evaluate {done.folder}" if s.data == "digits" and s.own_net is None else grids
    net = f" --net {s.own_net}" if s.own_net else ""
    print(f"trained on {done.images:,} images. Next: meanflow sample {done.folder}{net}; {judge}")


def _parsed(words: list[str], name: str) -> Train:
    """The words over the settings of a recipe, in its variant and ablation."""
    base = recipe(name, option(words, "--as"), option(words, "--ablation"))
    return parse(Train, words, "train", default=Train(settings=base))


def _notices(s: Train, name: str, data: Dataset, words: list[str]) -> list[str]:
    """What to expect of the recipe, and what was changed without its companion."""
    given = any(word == "--lr" or word.startswith("--lr=") for word in words)
    return notices(name, s.variant, s.ablation, s.settings, data.shape, data.classes, lr_given=given)


def _introduce(name: str, objective: Objective, data: Dataset, out: Path) -> None:
    """What is about to happen, and how to read its numbers."""
    parameters = sum(p.numel() for p in objective.net.parameters())
    print(
        f"recipe {name}: {type(objective.net).__name__} with {parameters:,} parameters on {len(data):,} samples "
        f"of shape {tuple(data.shape)}, classes: {_class_names(data)}; run folder {out}"
    )
    if getattr(data, "latents", None) is not None:
        print(data.latents)  # type: ignore[attr-defined]
    guidance = getattr(objective, "guidance", None)
    if guidance is not None:
        print(f"guidance: {guidance}")


def _class_names(data: Dataset) -> str:
    if data.classes is None:
        return "none"
    names = data.class_names or ()
    listed = ", ".join(f"{i} {name}" for i, name in enumerate(names[:20]) if str(i) != name)
    return f"{data.classes} ({listed})" if listed else str(data.classes)


def _dry_run(settings: Recipe, name: str, objective: Objective, data: Dataset, own: bool) -> str:
    """Settings, parameters, FLOPs and memory of a step, counted without doing it."""
    training = settings.training
    parameters = sum(p.numel() for p in objective.net.parameters())
    if own or not usual(data):
        return _counted(settings, name, objective, data, parameters)
    price = cost(settings, tuple(data.shape), data.classes)
    gib = price.memory(training) / 2**30
    return (
        f"recipe {name}\n{settings_text(settings)}\n"
        f"parameters        {parameters:,}\n"
        f"FLOPs per step    {price.step * training.batch:.3g} (batch {training.batch})\n"
        f"FLOPs of the run  {price.flops(training):.3g} ({training.steps:,} steps)\n"
        f"memory, estimated {gib:.2f} GiB (weights, gradients, optimiser, averages, stored activations)"
    )


def usual(data: Dataset) -> bool:
    """Whether the data are of the kind for which the cost can be counted without them: class labels, or none."""
    cond = data.batch([0])[1]
    return cond is None or (data.classes is not None and not isinstance(cond, dict))


def _counted(settings: Recipe, name: str, objective: Objective, data: Dataset, parameters: int) -> str:
    """The same where the network or the conditions are not those of a recipe: counted over a few rows of the data."""
    each = flops_per_image(objective, data, torch.device("cpu"))
    training = settings.training
    told = "unknown" if each is None else f"{each * training.batch:.3g} (batch {training.batch})"
    return (
        f"recipe {name}\n{settings_text(settings)}\n"
        f"parameters        {parameters:,} ({type(objective.net).__name__})\n"
        f"FLOPs per step    {told}"
    )
