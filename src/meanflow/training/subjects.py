"""A run folder as what a report is about: network, data, decoder, and what training wrote down."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.sampling import EulerField
from ..data import DataError, Dataset, LatentContract, digits, open_data
from ..evaluation.report import Subject
from . import checkpoint
from .checkpoint import CheckpointError
from .log import read_metrics
from .run import POWER, WEIGHTS, ema_file, load, read_config

RAW = "raw"


def averages(folder: Path, wanted: str | None) -> list[str]:
    """Names of the weights asked for: each kept average and the raw weights for "all", the first average for None.

    Others are taken as they are, separated by commas: a decay such as 0.999, "raw", or "power:0.075".
    """
    kept = [f"{decay:g}" for decay in read_config(folder)["training"]["ema"]]
    if wanted is None:
        return kept[:1]
    return [*kept, RAW] if wanted == "all" else [name.strip() for name in wanted.split(",") if name.strip()]


def loaded(
    folder: Path, weights: str, device: torch.device | str = "cpu", net: nn.Module | str | None = None
) -> nn.Module:
    """The network of a run with the weights of this name; net: as in `load`."""
    raw = weights == RAW
    return load(folder, raw=raw, ema=None if raw else weights, device=device, net=net)


def weights_words(weights: str) -> str:
    """The name of an average as it stands in tables."""
    return "raw weights" if weights == RAW else f"EMA {weights}"


def images_seen(folder: Path, weights: object = None) -> int | None:
    """Images that weights have seen: of "power:0.075@3200" those, else of the newest checkpoint, None without any."""
    _, at, images = str(weights).partition("@")
    if at:
        return int(images)
    found = [int(p.name) for p in checkpoint.checkpoints(folder / "checkpoints") if p.name.isdigit()]
    return found[-1] if found else None


def subject_of(
    folder: Path,
    weights: str,
    device: torch.device | str,
    *,
    vae: str | None = None,
    name: str | None = None,
    own: nn.Module | str | None = None,
) -> Subject:
    """What a report on a run needs; data that are not at hand are left out with the reason. own: net as in `load`."""
    config, net = read_config(folder), loaded(folder, weights, device, own)
    train, held_out, why = run_data(config)
    return Subject(
        name=name or folder.absolute().name,
        net=net,
        about=_about(folder, config, weights, net),
        train=train,
        held_out=held_out,
        why_no_data=why,
        decode=decoder(net, device, vae),
        metrics=read_metrics(folder),
        history=history(folder, net, weights),
    )


def decoder(net: nn.Module, device: torch.device | str, vae: str | None) -> Callable[[Tensor], Tensor] | None:
    """Latents to images, for a run on latents; None for any other."""
    contract: LatentContract | None = net.latents  # type: ignore[assignment]
    if contract is None:
        return None
    autoencoder = contract.load_vae(vae, device=device)
    return lambda x: contract.decode(x, autoencoder)


def history(folder: Path, net: nn.Module, weights: str) -> list[tuple[int, Callable[[], nn.Module]]]:
    """(images seen, how to load it) for each whole checkpoint but the newest, oldest first."""
    if weights.startswith(POWER):  # rebuilt for the end of the run only
        return []
    file = WEIGHTS if weights == RAW else ema_file(float(weights))
    found: list[tuple[int, Callable[[], nn.Module]]] = []
    for path in checkpoint.checkpoints(folder / "checkpoints")[:-1]:
        try:
            checkpoint.verify(path, [file])
        except CheckpointError:
            continue
        found.append((int(path.name), partial(_as_of, net, path, file)))
    return found


def run_data(config: dict[str, Any]) -> tuple[Dataset | None, Dataset | None, str]:
    """Training and held-out data of a run from where it found them, or None and why not.

    Data with another fingerprint than the run's are not taken: neighbours among other images would mean nothing.
    """
    about = config["data"]
    source = str(about.get("source", ""))
    name, _, split = source.partition(":")
    if name == "digits" and split:
        return digits(split), digits("held_out") if split == "train" else None, ""
    if not source or not Path(source).expanduser().exists():
        return None, None, f"the data that it was trained on ({source or 'tensors in memory'}) are not at hand"
    options: dict[str, Any] = {}
    if "skipped" in about:  # encoded images, the only ones that are read as they were asked for
        colours, *size = about["shape"]
        options = {"size": tuple(size), "mode": {1: "L", 3: "RGB"}.get(colours), "skip_broken": about["skipped"] > 0}
    for split in ("train", "all"):
        try:
            data = open_data(source, split=split, **options)
        except DataError:
            continue
        if data.description()["fingerprint"] == about.get("fingerprint"):
            return data, _held_out(source, options) if split == "train" else None, ""
    return None, None, f"what lies at {source} now is not what it was trained on (another fingerprint)"


def _held_out(source: str, options: dict[str, Any]) -> Dataset | None:
    try:
        return open_data(source, split="held_out", **options)
    except DataError:
        return None


def _as_of(net: nn.Module, path: Path, file: str) -> nn.Module:
    older = copy.deepcopy(net)
    inner = older.net if isinstance(older, EulerField) else older
    inner.load_state_dict({k.removeprefix("net."): v for k, v in checkpoint.read(path, file).items()})
    return older


def _about(folder: Path, config: dict[str, Any], weights: str, net: nn.Module) -> dict[str, str]:
    """Lines that say what was judged."""
    objective, data, training = config["objective"], config["data"], config["training"]
    seen = images_seen(folder, weights)
    guidance = getattr(net, "guidance", None)
    lines = {
        "Run": str(folder),
        "Objective": objective["type"],
        "Network": f"{config['net']['type']}, {config['net']['parameters']:,} parameters",
        "Data": f"{data.get('source', 'unknown')}, {data.get('length') or 'unknown number of'} samples of shape "
        f"{tuple(data.get('shape', ()))}, fingerprint {str(data.get('fingerprint', 'unknown'))[:12]}",
        "Images seen": f"{seen:,} of {training['images']:,}" if seen is not None else "unknown",
        "Weights": weights_words(weights),
        "Guidance": str(guidance) if guidance is not None else "none trained in",
    }
    return lines
