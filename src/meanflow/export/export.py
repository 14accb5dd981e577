"""From a run to a file: which program, with which inputs, and what the file says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..core.sampling import GuidedField, schedule_of
from ..data import VAE, LatentContract
from ..training import load
from ..training.run import class_names, read_config
from .files import Draw, write
from .programs import Bytes, Decoder, Field, Half, Sampler

SUFFIXES = (".onnx", ".pt2")
Weights = Literal["fp32", "fp16"]
NORMAL = "standard normal float32; row of seed s: torch.randn(shape, generator=torch.Generator().manual_seed(s))"


@dataclass(frozen=True)
class Exported:
    """What was written: the file, its size, and its largest difference to torch by batch size."""

    file: Path
    size: int
    differences: dict[int, float]
    about: dict[str, Any]

    def __str__(self) -> str:
        gaps = ", ".join(f"batch {batch}: {gap:.2g}" for batch, gap in self.differences.items())
        return f"{self.file}: {self.size:,} bytes, largest difference to torch {gaps}"


class _Subject(NamedTuple):
    """A loaded network, how its condition enters, and what is known of it."""

    net: nn.Module
    cond: Tensor | None
    about: dict[str, Any]


def export(
    run: str | Path,
    out: str | Path,
    *,
    steps: int | None = None,
    times: Sequence[float] | None = None,
    guidance: float | Literal["input"] | None = None,
    weights: Weights = "fp32",
    decode: bool = False,
    vae: str | Path | None = None,
    uint8: bool = False,
    licence: str = "not stated",
    ema: float | str | None = None,
    raw: bool = False,
    net: nn.Module | None = None,
    cond: Tensor | None = None,
    class_names: Sequence[str] | None = None,
) -> Exported:
    """Write the sampler of a run as a program from noise to samples, to .onnx or .pt2, for any number of rows.

    Inputs of the program: noise [B, *shape]; labels [B] int64 or condition [B, features] where the network takes one;
    guidance, a number, where guidance="input". steps, times, guidance: as in `sample`. weights: "fp16" stores them in
    half the bytes and computes in float32. decode: a latent run gives images, by its VAE or that of `vae`. uint8:
    images as bytes. net, cond: an instance of your own class and one row or more of its condition.
    Written only when it agrees with torch on random inputs, batch 1 and 7, to 1e-4; else ExportError names the first
    node that differs. Raises ValueError for a wrong name, for guiding twice, and where a package is missing.
    """
    out = _checked(Path(out))
    schedule = [float(t) for t in schedule_of(steps, None if times is None else list(times), 1)]
    subject = _subject(run, weights, guidance, ema, raw, net, cond, class_names, licence)
    after, shape = _after(run, subject, decode, vae, uint8)
    program = Sampler(Field(subject.net, getattr(subject.net, "null", None)), schedule, after)
    draw = _draws(subject, ("noise",), guidance == "input")
    about = _about(subject, "sampler", draw, times=schedule, output=_output(shape, uint8), guidance=guidance)
    return _written(out, program, draw, "samples", about)


def export_field(run: str | Path, out: str | Path, *, weights: Weights = "fp32", **options: Any) -> Exported:
    """Write u(z, r, t) of a run as a program with inputs z, t, r [B] and labels or condition: any times, any calls.

    options: ema, raw, net, cond, class_names, licence, guidance as in `export`.
    """
    out = _checked(Path(out))
    guidance = options.pop("guidance", None)
    given: dict[str, Any] = {
        "ema": None,
        "raw": False,
        "net": None,
        "cond": None,
        "class_names": None,
        "licence": "not stated",
    }
    subject = _subject(run, weights, guidance, **{**given, **options})
    draw = _draws(subject, ("z", "t", "r"), guidance == "input")
    program = Field(subject.net, getattr(subject.net, "null", None))
    about = _about(subject, "field", draw, output={"name": "u", "shape": subject.about["shape"]}, guidance=guidance)
    return _written(out, program, draw, "u", about)


def export_decoder(run: str | Path, out: str | Path, *, vae: str | Path | None = None) -> Exported:
    """Write the decoder of a latent run as a program from latents [B, C, h, w] to images [B, 3, H, W] in [-1, 1]."""
    out = _checked(Path(out))
    config = read_config(Path(run))
    module = _decoder(Path(run), vae)
    shape = tuple(config["net"]["arguments"]["shape"])
    about = {"format": 1, "kind": "decoder", "latents": config["data"]["latents"], "shape": list(shape)}
    return _written(out, module, lambda n: {"latents": torch.randn(n, *shape)}, "images", about)


def _written(out: Path, program: nn.Module, draw: Draw, output: str, about: dict[str, Any]) -> Exported:
    differences = write(out, program, draw, output, about)
    return Exported(out, out.stat().st_size, differences, about)


def _checked(out: Path) -> Path:
    if out.suffix not in SUFFIXES:
        raise ValueError(f"an export is a file {' or '.join('NAME' + s for s in SUFFIXES)}, got {out}")
    return out


def _subject(
    run: str | Path,
    weights: str,
    guidance: float | str | None,
    ema: float | str | None,
    raw: bool,
    net: nn.Module | None,
    cond: Tensor | None,
    class_names: Sequence[str] | None,
    licence: str,
) -> _Subject:
    if weights not in ("fp32", "fp16"):
        raise ValueError(f"weights are fp32 or fp16, got {weights!r}")
    config = read_config(Path(run))
    loaded = load(run, ema=ema, raw=raw, net=net)
    null = getattr(loaded, "null", None)
    example = _condition(loaded, null, cond)
    if guidance is not None and guidance != 1:
        if example is None:
            raise ValueError("guidance needs a condition, and this network takes none; leave guidance out")
        guided = GuidedField(loaded, 2.0 if guidance == "input" else float(guidance))  # refuses to guide twice
    about = {
        "format": 1,
        "run": Path(run).resolve().name,
        "shape": list(getattr(loaded, "shape", None) or config["data"]["shape"]),
        "classes": null if isinstance(null, int) else None,
        "class_names": _names(config, class_names),
        "weights": weights,
        "licence": licence,
        "recipe": {"net": config["net"], "objective": config["objective"]},
        "data": {k: config["data"].get(k) for k in ("kind", "source", "length", "fingerprint")},
        "latents": config["data"].get("latents"),
        "noise": NORMAL if loaded.source is None else f"of the run's own source: {loaded.source}",
    }
    net = guided if isinstance(guidance, float | int) and guidance != 1 else loaded
    wrapped = _half(net, null) if weights == "fp16" else net
    return _Subject(wrapped, example, about)


def _names(config: dict[str, Any], given: Sequence[str] | None) -> list[str] | None:
    names = given or class_names(config)
    return list(names) if names else None


def _half(net: nn.Module, null: Any) -> nn.Module:
    wrapped = Half(net)
    wrapped.null = null
    return wrapped


def _condition(net: nn.Module, null: Any, given: Tensor | None) -> Tensor | None:
    """One row or more of what the network takes as condition; None for a network without."""
    if given is not None:
        return given
    if isinstance(null, bool) or null is None:
        return None
    if isinstance(null, int):
        return torch.arange(null)
    return torch.as_tensor(null)[None] if isinstance(null, Tensor) else None


def _draws(subject: _Subject, names: tuple[str, ...], guidance: bool) -> Draw:
    """Random inputs by name, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    shape = tuple(subject.about["shape"])

    def draw(n: int) -> dict[str, Tensor]:
        inputs = {names[0]: torch.randn(n, *shape, generator=generator)}
        if len(names) > 1:
            t = torch.rand(n, generator=generator)
            inputs |= {"t": t, "r": t * torch.rand(n, generator=generator)}
        if subject.cond is not None and subject.cond.is_floating_point():
            inputs["condition"] = torch.randn(n, *subject.cond.shape[1:], generator=generator)
        elif subject.cond is not None:
            inputs["labels"] = subject.cond[torch.randint(len(subject.cond), (n,), generator=generator)]
        return inputs | ({"guidance": torch.tensor(1.5)} if guidance else {})

    return draw


def _after(
    run: str | Path, subject: _Subject, decode: bool, vae: str | Path | None, uint8: bool
) -> tuple[nn.Module, list[int]]:
    """What follows the last call, and the shape of one result."""
    shape = list(subject.about["shape"])
    parts: list[nn.Module] = []
    if vae is not None and not decode:
        raise ValueError("vae= names the decoder; it needs decode as well")
    if decode:
        module = _decoder(Path(run), vae)
        parts.append(module)
        with torch.no_grad():
            shape = list(module(torch.zeros(1, *shape)).shape[1:])
    if uint8:
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ValueError(f"uint8 is for images with 1 or 3 channels, these samples are {shape}; leave it out")
        parts.append(Bytes())
    return nn.Sequential(*parts), shape


def _decoder(run: Path, source: str | Path | None) -> Decoder:
    latents = read_config(run)["data"].get("latents")
    if not latents:
        raise ValueError(f"{run} was not trained on latents, so there is nothing to decode")
    contract = LatentContract.from_dict(latents)
    found: VAE = contract.load_vae(source)
    return Decoder(found, contract)


def _output(shape: list[int], uint8: bool) -> dict[str, Any]:
    return {"name": "samples", "shape": shape, "type": "uint8" if uint8 else "float32"}


def _about(subject: _Subject, kind: str, draw: Draw, **more: Any) -> dict[str, Any]:
    from .. import __version__

    inputs = {
        name: {
            "shape": ["batch", *value.shape[1:]] if value.ndim else [],
            "type": str(value.dtype).removeprefix("torch."),
        }
        for name, value in draw(1).items()
    }
    return {**subject.about, "kind": kind, "inputs": inputs, "meanflow": __version__, **more}
