"""The command line: parse, call, print."""

from __future__ import annotations

import json
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from . import __version__
from .bench import StepSettings, flops, price_sampling, price_step, sampling_table, step_table
from .core.sampling import noise_from_seeds, sample
from .data import Dataset, digits, open_data
from .doctor import doctor, from_file
from .evaluation import evaluate_digits, table
from .evaluation.pictures import drawable, picture, save_picture, single
from .objectives import Objective
from .recipes import RECIPES, Recipe, build, default_name, recipe
from .training import fit, load
from .training.checkpoint import write_text
from .training.run import pick_device, read_config

HELP = """\
meanflow: one-step generators, after "Mean Flows for One-step Generative Modeling" (arXiv:2505.13447)

  meanflow train digits                      train on the embedded handwritten digits
  meanflow train my-folder/ --size 32        train on a folder of images, one sub-folder a class or none
  meanflow sample runs/digits --classes 3,7  draw samples, one network call each
  meanflow evaluate runs/digits              say in numbers how good they are
  meanflow bench step | sample               the price of a training step, the speed of sampling
  meanflow doctor net.py:build               examine your own network before training it
  meanflow recipes                           list the recipes; `meanflow recipes show NAME` prints one

`meanflow COMMAND --help` explains the options of a command. The same train command again resumes a run.
"""


@dataclass
class Train:
    """Train a one-step generator. The same command again resumes an interrupted run.

    The options below override a recipe: the one of --recipe NAME, or one that fits the data. The defaults shown are
    those of --recipe NAME where it is given, else of the recipe dit-tiny; `meanflow recipes show NAME` prints others.
    """

    data: tyro.conf.Positional[str]
    """digits, a folder of images, or an .npz or .npy file."""
    recipe: str | None = None
    """Recipe to start from (see `meanflow recipes`); by default one that fits the data."""
    out: Path | None = None
    """Run folder; by default runs/ and the name of the data."""
    size: int | None = None
    """Side to which images of a folder are resized and cropped."""
    mode: str | None = None
    """RGB or L (grey), for a folder that mixes both."""
    skip_broken: bool = False
    """Leave out unreadable images instead of stopping."""
    dry_run: bool = False
    """Only print the settings, the number of parameters and the cost of a step."""
    settings: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    """The recipe's settings."""


@dataclass
class Sample:
    """Draw samples from a run: one network call each, or more with --steps.

    A sample depends on its seed and class alone, not on the batch that it is drawn in.
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""
    classes: str | None = None
    """Classes, e.g. 3,7 or 0-9; seed s gets the class at place s modulo their number. All by default."""
    seeds: str | None = None
    """Seeds, one a sample, e.g. 0-63 or 1,5,8."""
    steps: int = 1
    """Network calls per sample."""
    times: str | None = None
    """Instead of --steps, decreasing times from 1 to 0, e.g. 1,0.5,0."""
    guidance: float | None = None
    """Guidance scale at sampling time, for runs that were trained without guidance inside."""
    out: Path = Path("samples.png")
    """grid.png for one picture, name.npz for arrays, or a folder for single PNGs."""
    ema: float | None = None
    """Decay of the averaged weights to use; the run's first by default."""
    raw: bool = False
    """Use the weights without averaging."""
    batch: int = 256
    """Samples per network call."""
    device: str = "auto"
    """Device: cpu, cuda, or auto for the first GPU where there is one."""


@dataclass
class Evaluate:
    """Say in numbers how good runs are: a row for each run and number of network calls."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, e.g. a run and its flow-matching baseline."""
    steps: str = "1,2,4"
    """Numbers of network calls."""
    samples: int = 2000
    """Samples drawn for each row."""
    ema: float | None = None
    """Decay of the averaged weights to use; each run's first by default."""
    json: bool = False
    """Print one JSON object instead of a table."""
    device: str = "auto"
    """Device: cpu, cuda, or auto for the first GPU where there is one."""


@dataclass
class BenchStep:
    """Price a training step: FLOPs, peak memory and time as ratios to a flow-matching step of the same network and
    to the authors' algorithm (one derivative over all rows with a graph, guidance calls on all rows)."""

    settings: Annotated[StepSettings, tyro.conf.arg(name="")] = field(default_factory=StepSettings)
    """The step."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass
class BenchSample:
    """Price sampling: samples per second for 1, 2 and 4 calls, as a ratio to the bare network call."""

    run: Path | None = None
    """Run folder; without one, an untrained network of the digits recipe."""
    batch: int = 64
    """Samples per call."""
    rounds: int = 20
    """Interleaved rounds of timing."""
    device: str = "auto"
    """Device: cpu, cuda, or auto for the first GPU where there is one."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass
class Doctor:
    """Examine a network of your own: its call, derivative, times, convention, dropout, compilation and cost.

    Exit code 0 when nothing is found, 1 when a check fails.
    """

    factory: tyro.conf.Positional[str]
    """PATH.py:Factory, called without arguments; it returns net, (net, x) or (net, x, cond)."""
    gaussian: tuple[float, float] | None = None
    """Mean and standard deviation, when the network was trained on normal numbers."""
    compile: bool = False
    """Compare with torch.compile whatever the size; by default below 2 million parameters."""
    no_compile: bool = False
    """Leave that comparison out."""
    json: bool = False
    """Print one JSON object instead of a table."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, 1 for a failure, 2 for wrong use, 128 + n after signal n."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "sample": _sample,
        "evaluate": _evaluate,
        "recipes": _recipes,
        "bench": _bench,
        "doctor": _doctor,
    }
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if words[0] in ("-V", "--version"):
        print(__version__)
        return 0
    if words[0] not in commands:
        return _fail(f"unknown command {words[0]!r}{_nearest(words[0], commands)}; see meanflow --help")
    warnings.showwarning = _show_warning
    return _guarded(commands[words[0]], words[1:])


def _guarded(command: Callable[[list[str]], int], words: list[str]) -> int:
    """Turn the errors that a user can mend into one line."""
    try:
        return command(words)
    except (ValueError, FileNotFoundError) as error:
        return _fail(str(error))
    except (RuntimeError, OSError, FloatingPointError) as error:
        return _fail(str(error), code=1)
    except KeyboardInterrupt:
        return _fail("interrupted", code=130)


def _train(words: list[str]) -> int:
    # The recipe decides the defaults; data of another kind than guessed here parse once more below.
    guess = _option(words, "--recipe") or ("digits" if "digits" in words else "dit-tiny")
    s = _parse(Train, words, "train", default=Train(tyro.MISSING, settings=recipe(guess)))
    split = "train" if s.data == "digits" else "all"
    dataset = open_data(s.data, size=s.size, mode=s.mode, skip_broken=s.skip_broken, split=split)
    name = s.recipe or default_name(dataset, s.data)
    if name != guess:
        s = _parse(Train, words, "train", default=Train(tyro.MISSING, settings=recipe(name)))
    objective = build(s.settings, dataset)
    out = s.out or Path("runs") / Path(s.data).absolute().stem
    if s.dry_run:
        print(_dry_run(s.settings, name, objective, dataset))
        return 0
    _introduce(name, objective, dataset, out)
    run = fit(objective, dataset, out=out, training=s.settings.training)
    if run.stopped is not None:
        print(f"stopped by {run.stopped} after {run.images:,} images; saved. The same command again goes on.")
        return 128 + signal.Signals[run.stopped]
    judge = f"meanflow evaluate {out}" if s.data == "digits" else f"the newest grid in {out / 'grids'}"
    print(f"trained on {run.images:,} images. Next: meanflow sample {out}; {judge}")
    return 0


def _introduce(name: str, objective: Objective, data: Dataset, out: Path) -> None:
    """What is about to happen, and how to read its numbers."""
    parameters = sum(p.numel() for p in objective.net.parameters())
    print(
        f"recipe {name}: {type(objective.net).__name__} with {parameters:,} parameters on {len(data):,} samples "
        f"of shape {tuple(data.shape)}, classes: {_class_names(data)}; run folder {out}"
    )
    guidance = getattr(objective, "guidance", None)
    if guidance is not None:
        print(f"guidance: {guidance}")


def _class_names(data: Dataset) -> str:
    if data.classes is None:
        return "none"
    names = data.class_names or ()
    listed = ", ".join(f"{i} {name}" for i, name in enumerate(names[:20]) if str(i) != name)
    return f"{data.classes} ({listed})" if listed else str(data.classes)


def _sample(words: list[str]) -> int:
    s = _parse(Sample, words, "sample")
    device = pick_device(s.device)
    _at_least_one(batch=s.batch)
    net = load(s.run, ema=s.ema, raw=s.raw, device=device)
    shape, classes = tuple(net.shape), net.null if isinstance(net.null, int) else None  # type: ignore[arg-type]
    chosen = _chosen_classes(s.classes, classes)
    seeds = _numbers(s.seeds, "seeds") if s.seeds else list(range(8 * len(chosen) if chosen else 64))
    if s.times is not None and "--steps" in " ".join(words):
        raise ValueError("give --steps or --times, not both")
    schedule: dict[str, Any] = {"times": _floats(s.times, "times")} if s.times else {"steps": s.steps}
    parts, start = [], time.perf_counter()
    for i in range(0, len(seeds), s.batch):
        rows = seeds[i : i + s.batch]
        labels = torch.tensor([chosen[seed % len(chosen)] for seed in rows], device=device) if chosen else None
        noise = noise_from_seeds(rows, shape, device)
        parts.append(sample(net, noise, labels, guidance=s.guidance, **schedule).cpu())
    taken = time.perf_counter() - start
    where = _write_samples(torch.cat(parts), seeds, chosen, s.out)
    calls = len(schedule["times"]) - 1 if s.times else s.steps
    print(f"{len(seeds)} samples, {calls} network call{'s' * (calls != 1)} each, {taken * 1e3:.0f} ms -> {where}")
    return 0


def _write_samples(x: Any, seeds: list[int], chosen: list[int] | None, out: Path) -> Path:
    """A grid, an archive of arrays, or a folder of single pictures, by the name of `out`."""
    labels = [chosen[seed % len(chosen)] for seed in seeds] if chosen else None
    if out.suffix == ".npz":
        out.parent.mkdir(parents=True, exist_ok=True)
        arrays = {"x": x.numpy(), "seeds": np.array(seeds)} | ({"labels": np.array(labels)} if labels else {})
        np.savez(out, **arrays)
    elif not drawable(tuple(x.shape[1:])):
        raise ValueError(f"samples of shape {list(x.shape[1:])} cannot be drawn; use --out samples.npz")
    elif out.suffix.lower() == ".png":
        save_picture(picture(x, len(chosen) if chosen and len(chosen) > 1 else None), out)
    elif out.suffix:
        raise ValueError(f"--out must end in .png or .npz, or be a folder, got {out}")
    elif x.ndim != 4:
        raise ValueError("single pictures need images; use --out samples.png or samples.npz")
    else:
        for i, seed in enumerate(seeds):
            name = f"{seed:06d}.png" if labels is None else f"{seed:06d}-class{labels[i]}.png"
            save_picture(single(x[i]), out / name)
    return out


def _evaluate(words: list[str]) -> int:
    s = _parse(Evaluate, words, "evaluate")
    steps, device = _numbers(s.steps, "steps"), pick_device(s.device)
    if not s.runs:
        raise ValueError("name at least one run folder, e.g. meanflow evaluate runs/digits")
    if min(steps) < 1 or s.samples < 100:
        raise ValueError(f"steps must be at least 1 and samples at least 100, got {steps} and {s.samples}")
    for run in s.runs:
        source = str(read_config(run)["data"].get("source"))
        if not source.startswith("digits"):
            raise ValueError(f"{run} was trained on {source}; evaluate knows the protocol of digits so far")
    result = evaluate_digits(
        {str(run): load(run, ema=s.ema, device=device) for run in s.runs}, steps, samples=s.samples
    )
    write_text(s.runs[0] / "evaluation.json", json.dumps(result, indent=1))
    print(json.dumps(result) if s.json else table(result))
    return 0


def _recipes(words: list[str]) -> int:
    if words in ([], ["list"]):
        width = max(map(len, RECIPES))
        for name, make in RECIPES.items():
            print(f"{name:<{width}}  {(make.__doc__ or '').splitlines()[0]}")
        return 0
    if {"-h", "--help"} & set(words):
        print(
            "usage: meanflow recipes             list the recipes\n"
            "       meanflow recipes show NAME   print the settings of one"
        )
        return 0
    if words[0] != "show" or len(words) != 2:
        raise ValueError(f"use `meanflow recipes` or `meanflow recipes show NAME`, got {' '.join(words)!r}")
    found = recipe(words[1])
    print(f"{words[1]}: {RECIPES[words[1]].__doc__}\n{_settings_text(found)}")
    return 0


def _bench(words: list[str]) -> int:
    kinds: dict[str, Any] = {"step": BenchStep, "sample": BenchSample}
    if not words or words[0] not in kinds:
        if words and words[0] not in ("-h", "--help"):
            raise ValueError(
                f"unknown benchmark {words[0]!r}{_nearest(words[0], kinds)}; use bench step or bench sample"
            )
        print("usage: meanflow bench step --help     the price of a training step\n"
              "       meanflow bench sample --help   the price of sampling")  # fmt: skip
        return 0
    s = _parse(kinds[words[0]], words[1:], f"bench {words[0]}")
    if words[0] == "step":
        _at_least_one(batch=s.settings.batch, rounds=s.settings.rounds)
        result, text = price_step(replace(s.settings, device=str(pick_device(s.settings.device)))), step_table
    else:
        _at_least_one(batch=s.batch, rounds=s.rounds)
        net = load(s.run) if s.run else build(recipe("digits"), digits()).net
        result, text = (
            price_sampling(net, batch=s.batch, rounds=s.rounds, device=str(pick_device(s.device))),
            sampling_table,
        )
    print(json.dumps(result) if s.json else text(result))
    return 0


def _doctor(words: list[str]) -> int:
    s = _parse(Doctor, words, "doctor")
    if s.compile and s.no_compile:
        raise ValueError("give --compile or --no-compile, not both")
    net, x, cond = from_file(s.factory)
    compile = s.compile if s.compile or s.no_compile else None
    report = doctor(net, x, cond, gaussian=s.gaussian, compile=compile)
    print(report.json() if s.json else report.text())
    return 0 if report.ok else 1


def _dry_run(settings: Recipe, name: str, objective: Objective, data: Dataset) -> str:
    """Settings, parameters, FLOPs and memory of a step, from a small step scaled to the batch."""
    batch = settings.training.batch
    n = min(batch, 8)
    x, cond = data.batch([i % len(data) for i in range(n)])
    stored = 0

    def count(tensor: Any) -> Any:
        nonlocal stored
        stored += tensor.numel() * tensor.element_size()
        return tensor

    def work() -> None:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            objective(x, cond).loss.backward()

    total = flops(work) * batch / n
    parameters = sum(p.numel() for p in objective.net.parameters())
    copies = 4 + len(settings.training.ema)  # weights, gradients, two moments, averages
    gib = (parameters * 4 * copies + stored * batch / n) / 2**30
    return (
        f"recipe {name}\n{_settings_text(settings)}\n"
        f"parameters        {parameters:,}\n"
        f"FLOPs per step    {total:.3g} (batch {batch})\n"
        f"FLOPs of the run  {total * settings.training.steps:.3g} ({settings.training.steps:,} steps)\n"
        f"memory, estimated {gib:.2f} GiB (weights, gradients, optimiser, averages, stored activations)"
    )


def _settings_text(settings: Any) -> str:
    def lines(tree: dict[str, Any], path: str) -> list[str]:
        found: list[str] = []
        for key, value in tree.items():
            # Training options carry no prefix on the command line.
            name = key if path in ("", "training") else f"{path}.{key}"
            if value is False:
                continue  # a flag that is off is not written
            found += (
                lines(value, name) if isinstance(value, dict) else [f"  --{name.replace('_', '-')} {_shown(value)}"]
            )
        return found

    return "\n".join(lines(asdict(settings), ""))


def _shown(value: Any) -> str:
    if value is True:
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _parse(kind: Any, words: list[str], command: str, default: Any = None) -> Any:
    """Parse words into a dataclass; tyro itself explains wrong options and exits with 2."""
    given = {} if default is None else {"default": default}
    return tyro.cli(kind, args=words, prog=f"meanflow {command}", config=(tyro.conf.FlagCreatePairsOff,), **given)


def _chosen_classes(text: str | None, classes: int | None) -> list[int] | None:
    """The classes asked for; raises ValueError for ones that the network does not know."""
    if classes is None:
        if text is not None:
            raise ValueError("this run was trained without classes; leave --classes out")
        return None
    chosen = _numbers(text, "classes") if text else list(range(classes))
    wrong = [c for c in chosen if not 0 <= c < classes]
    if wrong:
        raise ValueError(f"this run has the classes 0 to {classes - 1}, got {wrong}")
    return chosen


def _numbers(text: str, name: str) -> list[int]:
    """ "3,7" or "0-63" as integers."""
    found: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdigit() or (dash and not high.isdigit()):
            raise ValueError(f"--{name} takes numbers and ranges such as 3,7 or 0-63, got {text!r}")
        found += range(int(low), int(high if dash else low) + 1)
    if not found:
        raise ValueError(f"--{name} {text!r} is an empty range; the smaller number comes first")
    return found


def _at_least_one(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _floats(text: str, name: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--{name} takes numbers such as 1,0.5,0, got {text!r}") from error


def _option(words: list[str], name: str) -> str | None:
    for i, word in enumerate(words):
        if word == name and i + 1 < len(words):
            return words[i + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def _nearest(word: str, known: Any) -> str:
    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"meanflow: warning: {message}", file=sys.stderr)


def _fail(message: str, code: int = 2) -> int:
    print(f"meanflow: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
