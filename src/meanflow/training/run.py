"""The folder of a run: what was asked, what it ran on, and what came out."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.guidance import Guidance
from ..core.sampling import EulerField
from ..data import Dataset, LatentContract
from ..nets import build
from ..objectives import Objective
from ..objectives.base import plain
from . import checkpoint
from .checkpoint import CheckpointError, write_text
from .ema import EMA
from .settings import FREE, Training

FORMAT = 1
WEIGHTS = "weights.safetensors"
TRAINING = "training.safetensors"


def describe(objective: Objective, data: Dataset, settings: Training) -> dict[str, Any]:
    """Everything that decides what a run computes, JSON-able."""
    net = objective.net
    arguments = getattr(net, "arguments", None)
    shapes = {name: list(value.shape) for name, value in net.state_dict().items()}
    return {
        "format": FORMAT,
        "net": {
            "type": type(net).__name__,
            "parameters": sum(p.numel() for p in net.parameters()),
            **({"arguments": arguments} if isinstance(arguments, dict) else {"state": shapes}),
        },
        "objective": {"type": type(objective).__name__, "arguments": objective.arguments()},
        "data": data.description(),
        "training": plain(settings),
    }


def pick_device(name: str) -> torch.device:
    """The device of a name, "auto" for the first GPU if any; raises ValueError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device {name!r} was asked for, but this torch sees no such device; use cpu or auto"
        ) from error
    return device


def open_run(folder: Path, config: dict[str, Any]) -> None:
    """Create the folder of a run, or make sure that it holds the same one.

    Raises ValueError saying what differs when it holds another.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; the run needs a folder, choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.json"
    config = json.loads(json.dumps(config))
    if file.exists():
        _check_vae(folder, read_config(folder)["data"].get("latents"), config["data"].get("latents"))
        differ = differences(read_config(folder), config)
        if differ:
            raise ValueError(
                f"{folder} holds another run; it differs in\n  " + "\n  ".join(differ) + "\n"
                "Choose another output folder, or give the settings of that run to continue it"
            )
        done = [int(path.name) for path in checkpoint.checkpoints(folder / "checkpoints")]
        if done and config["training"]["images"] < done[-1]:
            raise ValueError(
                f"{folder} has already seen {done[-1]:,} images, {config['training']['images']:,} were asked for; "
                "choose another output folder for a shorter run"
            )
    elif any(p for p in folder.iterdir() if not p.name.startswith(".")):
        raise ValueError(f"{folder} is not empty and holds no run (no config.json); choose another output folder")
    write_text(file, json.dumps(config, indent=1))
    write_text(folder / "environment.json", json.dumps(_environment(), indent=1))


def _check_vae(folder: Path, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
    """ValueError naming both autoencoders when a run is to go on with the latents of another one."""
    if old and new and old["vae_fingerprint"] != new["vae_fingerprint"]:
        before, now = (f"{c['vae']} (weights {c['vae_fingerprint'][:12]})" for c in (old, new))
        raise ValueError(
            f"{folder} was trained on latents of the VAE {before}, these are latents of {now}: to the network they are "
            "other data. Choose another output folder, or encode the images with the first"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a run; raises FileNotFoundError or ValueError saying what is wrong."""
    file = folder / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"{folder} holds no run: there is no config.json in it. Train one with meanflow train")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} is damaged: it holds no settings")
    if config.get("format") != FORMAT:
        raise ValueError(f"{file} has format {config.get('format')}, this version of meanflow reads {FORMAT}")
    return config


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Lines "name: old -> new" for every leaf in which two configurations differ, free settings left out."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [k for k in {**old, **new} if not (path == "training" and _free(k, old, new))]
        return [
            line for key in keys for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if old == new else [f"{path}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:60]} ... ({len(text) - 60} more characters)"


def _free(key: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether a setting may change when a run goes on; its length may unless the learning rate depends on it."""
    return key in FREE or (key == "images" and old["schedule"] == new["schedule"] == "constant")


def save_state(
    folder: Path,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    ema: EMA,
    step: int,
    settings: Training,
    carried: dict[str, Any],
) -> Path:
    """Write a checkpoint after `step` steps; raises FloatingPointError instead of saving weights that are not
    finite."""
    weights = objective.state_dict()
    bad = [name for name, value in weights.items() if not bool(value.isfinite().all())]
    if bad:
        raise FloatingPointError(
            f"weights are not finite (first: {bad[0]}); nothing was saved over the last checkpoint"
        )
    moments = {
        f"{index}.{name}": torch.as_tensor(value)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    files = {WEIGHTS: weights, TRAINING: moments}
    files |= {ema_file(decay): average for decay, average in ema.averages.items()}
    images = min(step * settings.batch, settings.images)
    state = {"step": step, "images": images, "ema_updates": ema.updates, "metrics": carried}
    return checkpoint.save(folder / "checkpoints", f"{images:012d}", files, state, settings.keep)


def resume(
    folder: Path, objective: Objective, optimizer: torch.optim.Optimizer, ema: EMA
) -> tuple[int, dict[str, Any]]:
    """Restore the newest whole checkpoint; its step and the metrics gathered since the last record.

    Without a checkpoint the step is 0. A damaged newest one is said loudly and the one before is taken;
    raises CheckpointError when all are damaged.
    """
    found = checkpoint.checkpoints(folder / "checkpoints")
    for path in reversed(found):
        try:
            state = checkpoint.read_state(path)
            weights, moments = checkpoint.read(path, WEIGHTS), checkpoint.read(path, TRAINING)
            averages = {decay: checkpoint.read(path, ema_file(decay)) for decay in ema.averages}
        except CheckpointError as error:
            warnings.warn(f"{error}. Going on from the checkpoint before it", stacklevel=2)
            continue
        objective.load_state_dict(weights)
        _load_moments(optimizer, moments)
        for decay, average in averages.items():
            ema.load(decay, average)
        ema.updates = state["ema_updates"]
        return int(state["step"]), state["metrics"]
    if found:
        raise CheckpointError(f"no checkpoint in {folder / 'checkpoints'} is whole; train in another folder")
    return 0, {}


def load(
    run: str | Path,
    *,
    ema: float | None = None,
    raw: bool = False,
    net: nn.Module | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """The trained network of a run, in eval mode, with averaged weights; call it with net(z, t=, r=, cond=).

    ema: which average, by decay; None takes the run's first. raw: the weights without averaging. net: an
    instance of your own class, where the run was trained with one. The result carries `shape`, `null`,
    `guidance`, `dropped` (the share of rows trained without condition) and `latents` (the contract by which samples
    are decoded, None for a run that was not trained on latents); a flow-matching run comes as a field for Euler steps.
    Raises CheckpointError naming a damaged file.
    """
    folder = Path(run)
    config = read_config(folder)
    found = checkpoint.checkpoints(folder / "checkpoints")
    if not found:
        raise CheckpointError(f"{folder} has no checkpoint yet; train it first")
    net = net or built(config)
    file, prefix = WEIGHTS, "net."
    if not raw:
        file = ema_file(_decay(config, ema))
    state = checkpoint.read(found[-1], file)
    net.load_state_dict({k.removeprefix(prefix): v for k, v in state.items()})
    net.to(device).eval().requires_grad_(False)
    arguments = config["objective"]["arguments"]
    trained = arguments.get("guidance")
    net.guidance = _guidance(trained) if trained else None  # type: ignore[assignment]
    latents = config["data"].get("latents")
    net.latents = LatentContract.from_dict(latents) if latents else None  # type: ignore[assignment]
    net.dropped = trained["drop"] if trained else arguments.get("drop", 0.0)
    return EulerField(net) if config["objective"]["type"] == "FlowMatching" else net


def _guidance(saved: dict[str, Any]) -> Guidance:
    low, high = saved["interval"]
    return Guidance(saved["scale"], saved["mix"], (low, high), saved["drop"], saved["drop_rows"])


def built(config: dict[str, Any]) -> nn.Module:
    """A new network of the kind that a run's config.json records; raises ValueError for one of the user's own."""
    saved = config["net"]
    if "arguments" not in saved:
        raise ValueError(f"this run was trained with your own network {saved['type']}; pass an instance as net=")
    return build(saved["type"], saved["arguments"])


def _decay(config: dict[str, Any], wanted: float | None) -> float:
    decays = config["training"]["ema"]
    if wanted is None:
        return decays[0]
    if wanted not in decays:
        raise ValueError(f"this run keeps EMA decays {decays}, not {wanted}")
    return wanted


def ema_file(decay: float) -> str:
    """Name of the file of an average in a checkpoint."""
    return f"ema-{decay:g}.safetensors"


def _load_moments(optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]) -> None:
    state = optimizer.state_dict()
    for key, value in moments.items():
        index, name = key.split(".", 1)
        state["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(state)


def _environment() -> dict[str, Any]:
    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: installed(name) for name in ("meanflow", "torch", "numpy", "safetensors")},
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git": _git_commit(),
    }


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
