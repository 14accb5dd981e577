"""The folder of a run: what was asked, what it ran on, and what came out."""

from __future__ import annotations

import fcntl
import json
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from ..core.conditions import LABEL
from ..core.guidance import Guidance
from ..core.sampling import EulerField
from ..core.source import NAMED_SOURCES
from ..data import DataError, Dataset, LatentContract, conditions_of
from ..data.files import write_text
from ..nets import NETS, build
from ..objectives import Objective
from ..objectives.base import plain
from ..own import code_of, named, network
from . import checkpoint, published
from .checkpoint import CheckpointError
from .parallel import local_rank
from .posthoc import posthoc_ema
from .settings import FREE, Training

FORMAT = 1
WEIGHTS = "weights.safetensors"
TRAINING = "training.safetensors"
LOCK = ".lock"
POWER = "power:"  # how the name of a rebuilt average begins


def describe(
    objective: Objective, data: Dataset, settings: Training, code: dict[str, dict[str, str]] | None = None
) -> dict[str, Any]:
    """Everything that decides what a run computes, JSON-able; code: records of the user's own, as of `fit`."""
    net = objective.net
    if code is None and type(net) not in NETS.values() and (found := code_of(type(net))):
        code = {"net": found}
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
        "conditions": _conditions(data, arguments),
        **({"code": code} if code else {}),
    }


def _conditions(data: Dataset, arguments: Any) -> dict[str, Any]:
    """What samples can be asked for with, as far as data and network know it."""
    if not callable(getattr(data, "batch", None)):  # weights of other codes come without their data
        classes = data.description().get("classes")
        return {LABEL: {"classes": classes}} if classes else {}
    try:
        found = conditions_of(data, scan=False)
    except DataError:  # of a kind that a network of the user's own takes
        return {}
    told = arguments if isinstance(arguments, dict) else {}
    for name, about in found.items():
        about.update((told.get("attributes") or {}).get(name, {}))
        if name == LABEL and about.get("classes") is None:
            about["classes"] = told.get("classes")
    return found


def pick_device(name: str) -> torch.device:
    """The device of a name, "auto" for the first GPU if any; raises ValueError for one that is not there.

    Of several processes on a machine each takes a GPU of its own, by its number there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available() and local_rank() < torch.cuda.device_count():
        name = f"cuda:{local_rank()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device {name!r} was asked for, but this torch sees no such device; use cpu or auto"
        ) from error
    return device


def open_run(folder: Path, config: dict[str, Any]) -> Path:
    """Create the folder of a run, or make sure that it holds the same one.

    Raises ValueError saying what differs when it holds another, and OSError where it cannot be written to.
    """
    with _unwritable_explained(folder):
        return _open_run(folder, config)


@contextmanager
def opened(folder: Path, config: dict[str, Any]) -> Iterator[Path]:
    """The folder of a run as of open_run, held for this process as of locked.

    Locked before anything is written, so that of two processes that begin at once one is refused and changes nothing.
    """
    with ExitStack() as held:
        with _unwritable_explained(folder):
            if (folder / "config.json").exists() or not folder.exists() or _is_empty(folder):
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(folder))
            _open_run(folder, config)
        yield folder


@contextmanager
def _unwritable_explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write to the run folder {folder}: {error}; choose another output folder") from error


def _is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing that is visible."""
    return folder.is_dir() and not any(p for p in folder.iterdir() if not p.name.startswith("."))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run's folder for this process; the lock goes with the process, however it ends.

    Raises ValueError where another process on any machine that shares the lock trains in the folder.
    """
    with open(folder / LOCK, "a") as file:
        try:
            _lock(file)
        except BlockingIOError as error:
            raise ValueError(
                f"another process is training in {folder}; wait for it, stop it, or choose another output folder"
            ) from error
        except OSError as error:
            warnings.warn(f"{folder} cannot be locked ({error}); do not train in it twice at a time", stacklevel=2)
        yield


def _lock(file: TextIO) -> None:
    """Take the lock; for a second, as one who asks for the status of a run holds it for an instant."""
    for _ in range(10):
        with suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.1)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(folder: Path) -> bool:
    """Whether a process is training in the folder."""
    try:
        with open(folder / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _open_run(folder: Path, config: dict[str, Any]) -> Path:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; the run needs a folder, choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.json"
    config = json.loads(json.dumps(config))
    if file.exists():
        _check_vae(folder, read_config(folder)["data"].get("latents"), config["data"].get("latents"))
        old = read_config(folder)
        # What the code is, is compared apart; the conditions follow from the data and are there to be read.
        aside = dict.fromkeys(("code", "conditions"))
        differ = differences({**old, **aside}, {**config, **aside})
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
        _compare_code(folder, old.get("code") or {}, config.get("code") or {})
    elif not _is_empty(folder):
        raise ValueError(f"{folder} is not empty and holds no run (no config.json); choose another output folder")
    write_text(file, json.dumps(config, indent=1))
    write_text(folder / "environment.json", json.dumps(_environment(), indent=1))
    return folder


def _check_vae(folder: Path, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
    """ValueError naming both autoencoders when a run is to go on with the latents of another one."""
    if old and new and old["vae_fingerprint"] != new["vae_fingerprint"]:
        before, now = (f"{c['vae']} (weights {c['vae_fingerprint'][:12]})" for c in (old, new))
        raise ValueError(
            f"{folder} was trained on latents of the VAE {before}, these are latents of {now}: to the network they are "
            "other data. Choose another output folder, or encode the images with the first"
        )


def _compare_code(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Warn where the user's own code has changed since the run began, and keep the checksums that it had."""
    for what, record in new.items():
        was = old.get(what)
        if not was:
            continue
        record["before"] = list(was.get("before", []))
        if was["sha256"] != record["sha256"]:
            record["before"].append(was["sha256"])
            warn_of_change(folder, what, was, record)


def warn_of_change(folder: Path, what: str, was: dict[str, Any], now: dict[str, Any]) -> None:
    """Say that the code of network or data is no longer the one that a run was trained with."""
    warnings.warn(
        f"the code of the {what}, {now['name']} in {now['path']}, is not the one that {folder} was trained with "
        f"({was['name']} in {was['path']}, sha256 {was['sha256'][:12]}, now {now['sha256'][:12]}); what it computes "
        "may have changed",
        stacklevel=4,
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
    _check_config(config, file)
    return config


def _check_config(config: dict[str, Any], file: Path) -> None:
    """ValueError naming the first part that is missing or of another kind than any run has written."""
    try:
        net, objective, data, training = (config[name] for name in ("net", "objective", "data", "training"))
        guidance, source = (objective["arguments"].get(name) for name in ("guidance", "source"))
        wanted = {
            "net": isinstance(net["type"], str) and isinstance(net.get("arguments", {}), dict),
            "objective": isinstance(objective["type"], str),
            "guidance": guidance is None or _is_guidance(guidance),
            "source": source is None or _is_source(source),
            "data": isinstance(data, dict) and isinstance(data.get("latents"), dict | None),
            "training.ema": bool(training["ema"]) and all(isinstance(d, float) for d in training["ema"]),
            "conditions": all(isinstance(one, dict) for one in (config.get("conditions") or {}).values()),
            "training": all(isinstance(training[name], int) and training[name] > 0 for name in ("images", "batch")),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is damaged: {type(error).__name__} {error}; it is not what a run has written"
        ) from error
    bad = [name for name, right in wanted.items() if not right]
    if bad:
        raise ValueError(f"{file} is damaged: {', '.join(bad)} is not what a run has written")


def _is_guidance(saved: dict[str, Any]) -> bool:
    numbers = [saved[name] for name in ("scale", "mix", "drop")] + list(saved["interval"])
    right = all(isinstance(n, int | float) for n in numbers) and len(numbers) == 5
    return right and isinstance(saved["drop_rows"], str)


def _is_source(saved: Any) -> bool:
    return isinstance(saved["type"] if isinstance(saved, dict) else saved, str)


def class_names(config: dict[str, Any]) -> tuple[str, ...] | None:
    """Names of a run's classes, None where it has no classes or none with names."""
    names = (config.get("conditions") or {}).get(LABEL, {}).get("names")
    return tuple(names) if names else None


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
    """Whether a setting may change when a run goes on; its length may unless the learning rate depends on it.


    A setting that did not exist when the run began had its default.
    """
    if key not in old and new[key] == plain(getattr(Training(), key, None)):
        return True
    return key in FREE or (key == "images" and old["schedule"] == new["schedule"] == "constant")


def load(
    run: str | Path,
    *,
    ema: float | str | None = None,
    raw: bool = False,
    net: nn.Module | str | None = None,
    device: torch.device | str = "cpu",
    revision: str | None = None,
) -> nn.Module:
    """The trained network of a run, in eval mode, with averaged weights; call it with net(z, t=, r=, cond=).

    run: a run folder, a published one, or "user/name" on the Hugging Face hub, where `revision` is a branch, tag or
    commit. ema: which average, by decay; None takes the run's first; "power:0.075" is the power-function average of
    relative length 0.075, rebuilt from the run's snapshots, and "power:0.075@64000" the one after 64,000 images. raw:
    the weights without averaging. net: an instance of your own class, where the run was trained with one, or
    PATH.py:NAME or module:NAME of it, which executes that file; nothing is executed otherwise. The result carries
    `shape`, `null`, `guidance`, `conditions` (what it can be asked for with), `source` (where noise comes from: None
    for N(0, I), a text where the folder cannot tell), `dropped` (the share of rows trained without condition) and
    `latents` (the contract by which samples are decoded, None for a run that was not trained on latents); a
    flow-matching run comes as a field for Euler steps.
    A damaged newest checkpoint is warned of and the one before is taken. Raises CheckpointError when none is whole.
    """
    folder = published.find(run, revision)
    config = read_config(folder)
    state = _weights(folder, config, ema, raw)
    net = _own(folder, config, net) if isinstance(net, str) else net or built(config, state)
    _fill(net, {k.removeprefix("net."): v for k, v in state.items()}, folder)
    net.to(device).eval().requires_grad_(False)
    arguments = config["objective"]["arguments"]
    trained = arguments.get("guidance")
    net.guidance = _guidance(trained) if trained else None  # type: ignore[assignment]
    latents = config["data"].get("latents")
    net.latents = LatentContract.from_dict(latents) if latents else None  # type: ignore[assignment]
    net.conditions = config.get("conditions") or {}  # type: ignore[assignment]
    net.source = _source(arguments.get("source"))
    for name, value in (("shape", tuple(config["data"].get("shape") or ()) or None), ("null", None)):
        if not hasattr(net, name):
            setattr(net, name, value)
    net.dropped = trained["drop"] if trained else arguments.get("drop", 0.0)
    return EulerField(net) if config["objective"]["type"] == "FlowMatching" else net


def _weights(folder: Path, config: dict[str, Any], ema: float | str | None, raw: bool) -> dict[str, Tensor]:
    """The weights asked for, under the names that the objective gives them."""
    if published.is_published(folder):
        return published.weights(folder, config, ema, raw)
    if isinstance(ema, str) and ema.startswith(POWER):
        if raw:
            raise ValueError(f"raw weights are those without averaging; leave out raw, or ema={ema!r}")
        return posthoc_ema(folder, *_length(ema)).state
    file = WEIGHTS if raw else ema_file(_decay(config, ema))
    path = checkpoint.newest_whole(folder / "checkpoints", [file])
    if path is None:
        raise CheckpointError(f"{folder} has no checkpoint yet; train it first")
    return checkpoint.read(path, file)


def _length(text: str) -> tuple[float, int | None]:
    """Relative length and images of "power:0.075" or "power:0.075@64000"."""
    sigma, at, images = text.removeprefix(POWER).partition("@")
    try:
        return float(sigma), int(images) if at else None
    except ValueError as error:
        raise ValueError(
            f"a rebuilt average is written power:LENGTH or power:LENGTH@IMAGES, e.g. power:0.075 or "
            f"power:0.075@64000; got {text!r}"
        ) from error


def _guidance(saved: dict[str, Any]) -> Guidance:
    low, high = saved["interval"]
    return Guidance(saved["scale"], saved["mix"], (low, high), saved["drop"], saved["drop_rows"])


def built(config: dict[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """A new network of the kind that a run's config.json records, for these weights.

    Raises ValueError for one of the user's own, and where the record is damaged.
    """
    saved = config["net"]
    if "arguments" not in saved:
        code = (config.get("code") or {}).get("net")
        where = f"{code['path']}:{code['name']}" if code and code["path"].endswith(".py") else "PATH.py:NAME"
        raise ValueError(
            f"this run was trained with your own network {saved['type']}, and no code is executed unasked: name it, "
            f"--net {where} on the command line, net={where!r} or an instance in Python"
        )
    try:
        _check_size(saved, weights)
        return build(saved["type"], saved["arguments"])
    except (KeyError, TypeError, AttributeError, ZeroDivisionError, OverflowError, RuntimeError) as error:
        raise ValueError(
            f"no {saved['type']} can be built from the arguments in config.json ({type(error).__name__}: {error}); it "
            "is damaged, or of another version of meanflow"
        ) from error


def _check_size(saved: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
    """ValueError where a size is damaged, before any memory is taken: each shows in the weights' sides or number."""
    largest = max([len(weights), *(side for tensor in weights.values() for side in tensor.shape)])
    for name, value in saved["arguments"].items():
        for n in (value if isinstance(value, list) else [value]) if name != "shape" else ():
            if isinstance(n, int) and n > largest:
                raise ValueError(
                    f"config.json is damaged: its {saved['type']} has {name} {n:,}, but nothing in the weights is "
                    f"larger than {largest:,}"
                )


def _own(folder: Path, config: dict[str, Any], target: str) -> nn.Module:
    """A new network of the user's own code, for the data of a run."""
    code, data = named(target), config["data"]
    was = (config.get("code") or {}).get("net")
    if was and was["sha256"] != code.sha256 and "arguments" not in config["net"]:
        warn_of_change(folder, "net", was, code.record())
    offered = {"classes": data.get("classes"), "conditions": config.get("conditions") or {}}
    return network(code, {"shape": tuple(data.get("shape") or ()), **offered})


def _source(saved: Any) -> Any:
    kind = saved.get("type") if isinstance(saved, dict) else saved
    if kind not in NAMED_SOURCES:
        return kind
    return NAMED_SOURCES[kind](**{key: value for key, value in saved.items() if key != "type"})


def _fill(net: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1:2] or [str(error)]
        raise ValueError(
            f"the weights of {folder} do not fit {type(net).__name__}: {reason[0].strip()[:300]} Build the network "
            "with the settings that it was trained with"
        ) from error


def _decay(config: dict[str, Any], wanted: float | str | None) -> float:
    decays = config["training"]["ema"]
    if wanted is None:
        return decays[0]
    with suppress(ValueError):
        wanted = float(wanted)
    if wanted not in decays:
        raise ValueError(f"this run keeps EMA decays {decays}, not {wanted}; power:0.075 rebuilds an average")
    return float(wanted)


def ema_file(decay: float) -> str:
    """Name of the file of an average."""
    return f"ema-{decay:g}.safetensors"


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
