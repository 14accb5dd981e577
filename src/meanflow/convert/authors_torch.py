"""Checkpoints of the authors' PyTorch code for CIFAR-10 (Gsunshine/py-meanflow), read without running any of it."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core.times import LogitNormal, Times
from ..core.weighting import AdaptiveWeight
from ..data.files import whole_file
from ..nets import UNet
from ..nets.unet import Resampling
from .folder import Converted, State, check_names, check_shapes

# The network and its averages in a file; the decays of the averages stand in its arguments.
COPIES = ("net", "net_ema", "net_ema1", "net_ema2")
IMAGES = 50_000  # of the training set of CIFAR-10
_TAPS = "resample_filter"
_BLOCK = {
    "norm0": "norm_in",
    "conv0": "conv_in",
    "affine": "shift",
    "norm1": "norm_out",
    "conv1": "conv_out",
    "skip": "shortcut",
    "norm2": "attention.norm",
    "qkv": "attention.qkv",
    "proj": "attention.out",
}


def unet_arguments(state: Mapping[str, Tensor], *, dropout: float = 0.0) -> dict[str, Any]:
    """Constructor arguments of our U-Net, read off names and shapes; dropout leaves no trace there."""
    sides = _sides(state)
    first = state[f"enc.{sides[0]}x{sides[0]}_conv.weight"]
    channels = len(first)
    counts = [sum(f"enc.{s}x{s}_block{i}.conv0.weight" in state for i in range(64)) for s in sides]
    augment = state.get("map_augment.weight")
    return {
        "shape": (first.shape[1], sides[0], sides[0]),
        "channels": channels,
        "multipliers": tuple(len(state[f"enc.{s}x{s}_block0.conv0.weight"]) // channels for s in sides),
        "blocks": counts[0],
        "attention": tuple(s for s in sides if f"enc.{s}x{s}_block0.qkv.weight" in state),
        "dropout": dropout,
        "augment_features": None if augment is None else augment.shape[1],
        "classes": None,
        "conditioning": "t,t-r",
    }


def unet_modules(net: UNet) -> dict[str, str]:
    """The authors' name of every module of our U-Net that has parameters, by our name, in their order."""
    side, levels, blocks = net.shape[1], len(net.arguments["multipliers"]), net.arguments["blocks"]
    sides = [f"{side >> level}x{side >> level}" for level in range(levels)]
    encoder, decoder = [], []
    for level, s in enumerate(sides):
        encoder += ([f"enc.{s}_down"] if level else []) + [f"enc.{s}_block{i}" for i in range(blocks)]
    for level, s in reversed(list(enumerate(sides))):
        decoder += [f"dec.{s}_up"] if level < levels - 1 else [f"dec.{s}_in0", f"dec.{s}_in1"]
        decoder += [f"dec.{s}_block{i}" for i in range(blocks + 1)]
    names = {
        "augment": "map_augment",
        "hidden": "map_layer0",
        "embedding": "map_layer1",
        "first": f"enc.{sides[0]}_conv",
    }
    for room, found in (("encoder", encoder), ("decoder", decoder)):
        for i, block in enumerate(found):
            names |= {f"{room}.{i}.{ours}": f"{block}.{theirs}" for theirs, ours in _BLOCK.items()}
    return names | {"norm": f"dec.{sides[0]}_aux_norm", "last": f"dec.{sides[0]}_aux_conv"}


def parameter_names(net: UNet) -> dict[str, str]:
    """The authors' name of every parameter of our U-Net, by our name, in their order."""
    known = net.state_dict().keys()
    pairs = ((f"{o}.{kind}", f"{t}.{kind}") for o, t in unet_modules(net).items() for kind in ("weight", "bias"))
    return {ours: theirs for ours, theirs in pairs if ours in known}


def read(file: Path) -> Converted:
    """The network, its averages and its settings from a file of the authors' code.

    Raises ValueError for a file that is not theirs, is cut off, or would run code when loaded.
    """
    content = _loaded(file)
    model, given = _parts(file, content)
    raw = _copy(model, "net")
    net = _network(file, raw, float(given.get("dropout", 0.0)))
    names = parameter_names(net)
    copies = {c: _converted(file, c, _copy(model, c), net, names) for c in COPIES if _copy(model, c)}
    decays = [given.get("ema_decay", 0.9999), *given.get("ema_decays", (0.99995, 0.9996))]
    batch, updates, epoch = (
        int(given.get("batch_size", 1024)),
        int(model.get("num_updates", 0)),
        content.get("epoch", 0),
    )
    return Converted(
        code="authors-torch",
        source=file.name,
        net=net,
        weights=copies.pop("net"),
        averages={float(decay): copies[c] for c, decay in zip(COPIES[1:], decays, strict=False) if c in copies},
        moments=_moments(content.get("optimizer"), [n for n in raw if not n.endswith(_TAPS)], names),
        step=updates or (epoch + 1) * (IMAGES // batch),
        batch=batch,
        objective={
            "times": _times(given),
            "weighting": AdaptiveWeight(given.get("norm_p", 0.75), given.get("norm_eps", 1e-3)),
        },
        training={"lr": given.get("lr", 6e-4), "betas": (0.9, 0.999), "clip": None},
        extra={"args": given, "epoch": epoch, "num_updates": updates},
    )


def write(converted: Converted, file: Path) -> Path:
    """A file that the authors' code loads: networks, averages, optimiser state and arguments.

    Their file has three averages; where a run keeps fewer, the last one stands in for the others.
    Raises ValueError for a network that their code has no counterpart of.
    """
    net = _writable(converted.net)
    names = parameter_names(net)
    averages = list(converted.averages.values())
    copies = [converted.weights, *(averages + averages[-1:] * 3)[:3]]
    model = {"num_updates": torch.tensor(converted.extra.get("num_updates", converted.step))}
    for copy, weights in zip(COPIES, copies, strict=True):
        model |= {f"{copy}.{name}": value for name, value in _written(net, weights, names).items()}
    content = {
        "model": model,
        "optimizer": _optimizer_state(converted, names),
        "lr_schedule": {},
        "epoch": converted.extra.get("epoch", converted.step * converted.batch // IMAGES),
        "args": argparse.Namespace(**(converted.extra.get("args") or _arguments(converted))),
    }
    with whole_file(file) as aside:
        torch.save(content, aside)
    return file


def _loaded(file: Path) -> dict[str, Any]:
    """The content of a file; nothing in it is run."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file; give the authors' checkpoint-*.pth")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} was refused: it holds more than tensors and plain values, and loading it could run code "
            f"({_first_line(error)})"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{file} is damaged or no PyTorch checkpoint: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, wanted a dict with 'model' and 'args'")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _parts(file: Path, content: dict[str, Any]) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """The states and the arguments in the file."""
    model, args = content.get("model"), content.get("args", argparse.Namespace())
    if not isinstance(model, Mapping) or not any(str(name).startswith("net.enc.") for name in model):
        found = ", ".join(map(repr, list(content)[:6]))
        raise ValueError(
            f"{file} is no checkpoint of the authors' PyTorch code: wanted 'model' with the names net.enc.* and "
            f"net.dec.*, found {found}. For a flax folder use `meanflow convert authors-jax`"
        )
    given = dict(vars(args)) if isinstance(args, argparse.Namespace) else {}
    strange = [name for name, value in given.items() if not _is_plain(value)]
    if strange:
        raise ValueError(f"{file}: args.{strange[0]} is no plain value; it cannot be kept")
    return model, given


def _network(file: Path, state: Mapping[str, Tensor], dropout: float) -> UNet:
    try:
        return UNet(**unet_arguments(state, dropout=dropout))
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{file}: its arrays describe no U-Net of the authors' code ({error})") from error


def _copy(model: Mapping[str, Tensor], name: str) -> State:
    return {key.removeprefix(f"{name}."): value for key, value in model.items() if key.startswith(f"{name}.")}


def _converted(file: Path, copy: str, state: State, net: UNet, names: dict[str, str]) -> State:
    check_names(file, (n for n in state if not n.endswith(_TAPS)), names.values(), copy)
    found = {ours: state[theirs] for ours, theirs in names.items()}
    check_shapes(file, found, net, copy)
    return found


def _written(net: UNet, weights: State, names: dict[str, str]) -> State:
    """The weights under the authors' names and in their order, with the filters that their modules keep."""
    taps = (
        next(m.taps for m in net.modules() if isinstance(m, Resampling))
        if len(net.arguments["multipliers"]) > 1
        else None
    )
    found: State = {}
    for ours, theirs in names.items():
        found[theirs] = weights[ours].detach().clone()
        module, _, kind = theirs.rpartition(".")
        if kind == "bias" and re.search(r"_(down|up)\.(conv0|skip)$", module):
            assert taps is not None
            found[f"{module}.{_TAPS}"] = taps.clone()
    return found


def _writable(net: nn.Module) -> UNet:
    if not isinstance(net, UNet):
        raise ValueError(f"the authors' PyTorch code has the U-Net only, this run has a {type(net).__name__}")
    a = net.arguments
    if a["classes"] is not None or a["conditioning"] != "t,t-r" or net.shape[1] != net.shape[2]:
        raise ValueError(
            "the authors' U-Net is for square images without classes and sees t and t - r; this one has the shape "
            f"{tuple(net.shape)}, classes {a['classes']} and conditioning {a['conditioning']!r}"
        )
    return net


def _moments(saved: Any, order: list[str], names: dict[str, str]) -> dict[str, State] | None:
    """Adam's moments by our names; the file numbers them in the order of the authors' parameters."""
    state = saved.get("state") if isinstance(saved, Mapping) else None
    if not state or len(state) != len(order):
        return None
    ours = {theirs: name for name, theirs in names.items()}
    return {ours[theirs]: {key: state[i][key] for key in ("exp_avg", "exp_avg_sq")} for i, theirs in enumerate(order)}


def _optimizer_state(converted: Converted, names: dict[str, str]) -> dict[str, Any]:
    """Adam's state as torch writes it, empty where the run has none."""
    if converted.moments is None:
        return {}
    step = torch.tensor(float(converted.step))
    lr, betas = converted.training.get("lr", 6e-4), tuple(converted.training.get("betas", (0.9, 0.999)))
    group = {"lr": lr, "betas": betas, "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False}
    return {
        "state": {i: {"step": step, **converted.moments[ours]} for i, ours in enumerate(names)},
        "param_groups": [{**group, "params": list(range(len(names)))}],
    }


def _times(args: Mapping[str, Any]) -> Times:
    """The sampler of times; v0 sorts two draws of one distribution, v1 has two distributions."""
    t = LogitNormal(args.get("P_mean_t", -0.6), args.get("P_std_t", 1.6))
    r = LogitNormal(args.get("P_mean_r", -4.0), args.get("P_std_r", 1.6))
    order: Literal["sort", "clip"] = "sort" if args.get("tr_sampler", "v1") == "v0" else "clip"
    # Their `ratio` is the share of rows with r != t.
    return Times(t, r, share_equal=1 - args.get("ratio", 0.75), pick="coin", order=order)


def _arguments(converted: Converted) -> dict[str, Any]:
    """The arguments of the authors' program that a run of ours stands for."""
    times, weighting = converted.objective["times"], converted.objective["weighting"]
    t, r = times["t"], times["r"] or times["t"]
    if t["type"] != "LogitNormal" or r["type"] != "LogitNormal":
        raise ValueError("the authors' code draws times from logit-normal distributions only, this run does not")
    decays = list(converted.averages)
    decays = (decays + decays[-1:] * 3)[:3]
    return {
        "arch": "unet",
        "dataset": "cifar10",
        "dropout": converted.net.arguments["dropout"],  # type: ignore[index]
        "use_edm_aug": converted.net.arguments["augment_features"] is not None,  # type: ignore[index]
        "batch_size": converted.batch,
        "ema_decay": decays[0],
        "ema_decays": decays[1:],
        "tr_sampler": "v1" if times["order"] == "clip" else "v0",
        "P_mean_t": t["mean"],
        "P_std_t": t["std"],
        "P_mean_r": r["mean"],
        "P_std_r": r["std"],
        "ratio": 1 - times["share_equal"],
        "norm_p": weighting["p"],
        "norm_eps": weighting["c"],
    }


def _sides(state: Mapping[str, Tensor]) -> list[int]:
    """The sides of the feature maps, largest first."""
    found = {int(m[1]) for name in state if (m := re.match(r"enc\.(\d+)x\1_", name))}
    return sorted(found, reverse=True)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
