"""meanflow sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from ..core.conditions import LABEL, MASK, NOISE, Cond, class_number, map_cond, take
from ..core.sampling import noise_for, sample
from ..data import LatentContract, decode_as_configured, load_vae
from ..data.files import whole_file
from ..evaluation.pictures import drawable, picture, save_picture, single
from ..own import blamed, named
from ..training import load
from ..training.parallel import World, joined
from ..training.run import pick_device
from .asking import asked, read_given
from .times import auto_steps, auto_times
from .words import at_least_one, floats, numbers, parse

TIMEOUT = 3600  # seconds that a process waits for the samples of another; our choice


@dataclass
class Sample:
    """Draw samples from a run: one network call each, or more with --steps.

    A sample depends on its seed and class alone, not on the batch that it is drawn in. Started by torchrun, the
    processes share the batches.
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""
    classes: str | None = None
    """Classes by number or name, e.g. 3,7 or 0-9 or cat,dog; seed s gets the class at place s modulo their number. All
    by default."""
    seeds: str | None = None
    """Seeds, one a sample, e.g. 0-63 or 1,5,8."""
    cond: tuple[str, ...] = ()
    """Other conditions as NAME=VALUE, e.g. --cond hair=dark age=40; of several values with commas between, seed after
    seed gets the next."""
    lengths: str | None = None
    """Lengths of sequences, e.g. 40-64 or 100; seed after seed gets the next. The longest by default."""
    given: Path | None = None
    """An .npz with a row for each sample: conditions by name, such as an observation, and noise where samples
    start from something else."""
    steps: int = 1
    """Network calls per sample."""
    times: str | None = None
    """Instead of --steps, decreasing times from 1 to 0, e.g. 1,0.5,0; auto or auto:4 searches those of 2 or 4 calls
    that come nearest to many calls, once for each weights of a run."""
    guidance: float | None = None
    """Guidance scale at sampling time, for runs that were trained without guidance inside."""
    out: Path = Path("samples.png")
    """grid.png for one picture, name.npz for arrays (of a latent run: latents), or a folder for single PNGs."""
    net: str | None = None
    """PATH.py:NAME or module:NAME of the network, for runs that were trained with your own; executes that file."""
    ema: float | str | None = None
    """Decay of the averaged weights to use, the run's first by default; power:0.075 rebuilds one of that length."""
    raw: bool = False
    """Use the weights without averaging."""
    vae: str | None = None
    """Autoencoder that decodes the samples of a latent run, where it is no longer at the path of the run's latents; and
    of converted weights, which do not name theirs."""
    no_decode: bool = False
    """Write the latents of a latent run as they are, to an .npz."""
    batch: int = 256
    """Samples per network call."""
    device: str = "auto"
    """Device: cpu, cuda, or auto for the first GPU where there is one."""


def run(words: list[str]) -> int:
    """Draw samples from a run."""
    s = parse(Sample, words, "sample")
    at_least_one(batch=s.batch)
    with joined(TIMEOUT) as world, blamed([named(s.net).path] if s.net else []):
        return _draw(s, words, world)


def _draw(s: Sample, words: list[str], world: World) -> int:
    device = pick_device(s.device)
    net = load(s.run, ema=s.ema, raw=s.raw, net=s.net, device=device)
    decode = world.together(lambda: _decoder(s, net.latents, device) if world.first else None)  # type: ignore[arg-type]
    shape, given = tuple(net.shape), read_given(s.given)  # type: ignore[arg-type]
    about: dict[str, Any] = net.conditions  # type: ignore[assignment]
    classes = net.null if isinstance(net.null, int) else about.get(LABEL, {}).get("classes")
    names = about.get(LABEL, {}).get("names")
    chosen = _chosen_classes(s.classes, None if LABEL in given or s.cond else classes, names)
    rows = len(next(iter(given.values()))) if given else 8 * len(chosen) if chosen else 64
    seeds = numbers(s.seeds, "seeds") if s.seeds else list(range(rows))
    if given and len(seeds) > rows:
        raise ValueError(f"{s.given} has {rows} rows, --seeds asks for {len(seeds)} samples")
    if s.times is not None and "--steps" in " ".join(words):
        raise ValueError("give --steps or --times, not both")
    schedule: dict[str, Any] = {"times": _times(s, s.times, net, device, world)} if s.times else {"steps": s.steps}
    labels = [chosen[seed % len(chosen)] for seed in seeds] if chosen else None
    about = about or ({LABEL: {"classes": classes}} if chosen else {})
    decodes = net.latents is not None or s.vae is not None
    _check_out(s.out, None if decodes else shape, seeds, labels)
    null = net.null if net.dropped else None
    cond = asked(about, given, s.cond, s.lengths, labels, len(seeds), null)
    noise = given.get(NOISE)
    if noise is None:
        noise_for(net, seeds[:1], cond=take(cond, slice(0, 1)))  # refuses before anything is drawn
    start = time.perf_counter()

    def batch(i: int) -> torch.Tensor:
        here = slice(i, i + s.batch)
        some = take(cond, here)
        e = noise_for(net, seeds[here], cond=some) if noise is None else noise[here]
        some = map_cond(lambda c: c.to(device), some)
        return sample(net, e.to(device), some, guidance=s.guidance, **schedule).cpu()

    x = _shared(batch, range(0, len(seeds), s.batch), world)
    taken = time.perf_counter() - start
    if decode is not None:
        where = _write_samples(decode(x), seeds, chosen, s.out, _lengths(cond))
        calls = len(schedule["times"]) - 1 if s.times else s.steps
        print(f"{len(seeds)} samples, {calls} network call{'s' * (calls != 1)} each, {taken * 1e3:.0f} ms -> {where}")
    return 0


def _lengths(cond: Cond) -> list[int] | None:
    mask = cond.get(MASK) if isinstance(cond, dict) else None
    return mask.sum(1).tolist() if isinstance(mask, Tensor) and mask.ndim == 2 else None


def _times(s: Sample, text: str, net: nn.Module, device: torch.device, world: World) -> list[float]:
    """The times asked for, or those that are searched, by the first process for all."""
    if not text.startswith("auto"):
        return floats(text, "times")
    found = world.once(lambda: auto_times(s.run, net, auto_steps(text), s.guidance, device))
    if world.first:
        print(found)
    return list(found.times)


def _shared(batch: Callable[[int], torch.Tensor], starts: range, world: World) -> torch.Tensor:
    """The batches that begin at `starts`, in order: whole ones go round the processes.

    So a batch has the same rows whatever the number of processes, and its samples are the same to the last bit.
    """
    parts = world.gather([batch(i) for i in starts[world.rank :: world.size]])
    return torch.cat([parts[n % world.size][n // world.size] for n in range(len(starts))])


def _decoder(s: Sample, contract: LatentContract | None, device: torch.device) -> Callable[[Tensor], Tensor]:
    """How samples become what is written: as they are, or for pictures of a latent run by its VAE."""
    if contract is None:
        if s.no_decode:
            raise ValueError("this run does not decode anything by itself; leave --no-decode out")
        if s.vae is None:
            return lambda x: x
        # Converted weights do not know their latents; the recipe is the VAE's own scale.
        own = load_vae(s.vae, device=device)
        return lambda x: decode_as_configured(x, own)
    if s.no_decode and s.out.suffix != ".npz":
        raise ValueError(f"--no-decode writes latents, which need --out name.npz, got {s.out}")
    if s.out.suffix == ".npz":
        return lambda x: x
    vae = contract.load_vae(s.vae, device=device)
    return lambda x: contract.decode(x, vae)


def _write_samples(
    x: Any, seeds: list[int], chosen: list[int] | None, out: Path, lengths: list[int] | None = None
) -> Path:
    """A grid, an archive of arrays, or a folder of single pictures, by the name of `out`."""
    labels = [chosen[seed % len(chosen)] for seed in seeds] if chosen else None
    if out.suffix == ".npz":
        arrays = {"x": x.numpy(), "seeds": np.array(seeds)} | ({"labels": np.array(labels)} if labels else {})
        arrays |= {"lengths": np.array(lengths)} if lengths else {}
        with whole_file(out) as aside, open(aside, "wb") as file:
            np.savez(file, **arrays)
    elif out.suffix:
        save_picture(picture(x, len(chosen) if chosen and len(chosen) > 1 else None), out)
    else:
        for i, seed in enumerate(seeds):
            save_picture(single(x[i]), out / _single_name(seed, labels[i] if labels else None))
    return out


def _single_name(seed: int, label: int | None) -> str:
    return f"{seed:06d}.png" if label is None else f"{seed:06d}-class{label}.png"


def _check_out(out: Path, shape: tuple[int, ...] | None, seeds: list[int], labels: list[int] | None) -> None:
    """ValueError where samples of this shape, None for decoded images, cannot be written to `out`."""
    if out.suffix == ".npz":
        return
    if out.suffix and out.suffix.lower() != ".png":
        raise ValueError(f"--out must end in .png or .npz, or be a folder, got {out}")
    if shape is not None and not drawable(shape):
        raise ValueError(f"samples of shape {list(shape)} cannot be drawn; use --out samples.npz")
    if out.suffix:
        return
    if shape is not None and len(shape) != 3:
        raise ValueError("single pictures need images; use --out samples.png or samples.npz")
    mine = {_single_name(seed, labels[i] if labels else None) for i, seed in enumerate(seeds)}
    others = sorted({file.name for file in out.glob("*.png")} - mine)
    if others:
        raise ValueError(
            f"{out} holds other pictures, such as {others[0]}, and who judges the folder would take them for samples "
            "of this run; choose another folder"
        )


def _chosen_classes(text: str | None, classes: int | None, names: Sequence[str] | None) -> list[int] | None:
    """The classes asked for; raises ValueError for ones that the network does not know."""
    if classes is None:
        if text is not None:
            raise ValueError("this run was trained without classes; leave --classes out")
        return None
    if not text:
        return list(range(classes))
    asked: list[int | str] = []
    for part in map(str.strip, text.split(",")):
        asked += [part] if part in (names or ()) or not part[:1].isdigit() else numbers(part, "classes")
    return [class_number(label, classes, names) for label in asked]
