"""Autoencoders between images and latents, behind one small interface."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import DataError
from .tiny_autoencoder import TinyAutoencoder

RECIPE_VAE = "stabilityai/sd-vae-ft-mse"  # that of the paper's ImageNet runs; its config says scale 0.18215
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"  # names that diffusers writes
SIDE = 64  # of the empty image that shows channels and downsampling; a multiple of every usual downsampling


@dataclass(frozen=True)
class VAE:
    """An autoencoder for RGB images, ready to encode and decode without a graph.

    id: the path or hub id it came from. fingerprint: sha256 of its weights. posterior: whether encoding gives a
    standard deviation (else it is 0). shift, scale: those of its own config, one number or one a channel; None where
    it has none. Latents for a network are (z - shift) * scale.
    """

    id: str
    kind: str
    fingerprint: str
    channels: int
    downsampling: int
    posterior: bool
    shift: tuple[float, ...] | None
    scale: tuple[float, ...] | None
    net: nn.Module

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [B, channels, h, w] of the posterior of images [B, 3, H, W] in [-1, 1]."""
        mean, std = self.net.encode(images.to(self.device))  # type: ignore[operator]
        return mean, torch.zeros_like(mean) if std is None else std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] of latents [B, channels, h, w] as `encode` gives them."""
        return self.net.decode(latents.to(self.device)).clamp(-1, 1)  # type: ignore[operator]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device


def load_vae(source: str | Path, *, device: torch.device | str = "cpu", download: bool = True) -> VAE:
    """The autoencoder of a folder or of a hub id, in float32.

    source: a folder as diffusers saves an AutoencoderKL or AutoencoderTiny (or a pipeline with one in vae/), a folder
        with the two files of a TAESD (*encoder*.pth, *decoder*.pth or .safetensors), or a hub id owner/name, with the
        sub-folder behind it where the hub has one (owner/name/vae).
    download: whether a hub id that is not in the cache may be fetched.
    Raises DataError that says how to get what is not there.
    """
    path = Path(source).expanduser()
    if path.exists():
        name, net, own = str(path.absolute()), *_from_path(path)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+(/[\w.-]+)*", str(source)) and str(source)[0] != ".":
        name, net, own = str(source), *_from_diffusers(_fetched(str(source), download), str(source))
    else:
        raise DataError(
            f"{source}: there is no such folder; pass the folder of an autoencoder, or a hub id such as {RECIPE_VAE}"
        )
    net.eval().requires_grad_(False)
    fingerprint = weights_fingerprint(net)
    return _examined(name, net.to(device), fingerprint, *own)


def weights_fingerprint(net: nn.Module) -> str:
    """sha256 over names, shapes and values (as float32) of the weights, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(f"{name} {list(value.shape)}\n".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class _Diffusers(nn.Module):
    """An AutoencoderKL or AutoencoderTiny of diffusers; both take images in [-1, 1]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        found = self.model.encode(images)
        if hasattr(found, "latents"):
            return found.latents, None
        return found.latent_dist.mean, found.latent_dist.std

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents).sample


class _Tiny(nn.Module):
    """A TAESD of two files; it takes images in [0, 1]."""

    def __init__(self, model: TinyAutoencoder) -> None:
        super().__init__()
        self.model = model

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.model.encoder((images + 1) / 2), None

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decoder(latents) * 2 - 1


Own = tuple[tuple[float, ...] | None, tuple[float, ...] | None]


def _examined(name: str, net: nn.Module, fingerprint: str, shift: Any, scale: Any) -> VAE:
    """The VAE with what encoding an empty image shows."""
    with torch.no_grad():
        mean, std = net.encode(torch.zeros(1, 3, SIDE, SIDE, device=next(net.parameters()).device))  # type: ignore[operator]
    kind = type(net.model).__name__
    return VAE(name, kind, fingerprint, mean.shape[1], SIDE // mean.shape[2], std is not None, shift, scale, net)


def _from_path(path: Path) -> tuple[nn.Module, Own]:
    for folder in (path, path / "vae"):
        if (folder / CONFIG).is_file():
            return _from_diffusers(folder, str(path))
    files = sorted(p for p in path.iterdir() if p.suffix in (".pth", ".safetensors")) if path.is_dir() else []
    halves = [[p for p in files if half in p.name.lower()] for half in ("encoder", "decoder")]
    if [len(half) for half in halves] != [1, 1]:
        found = ", ".join(p.name for p in path.iterdir())[:200] if path.is_dir() else "it is a file"
        raise DataError(
            f"{path}: is no autoencoder ({found or 'it is empty'}); wanted a folder with {CONFIG} and {WEIGHTS} "
            f"as diffusers saves it, or with one *encoder*.pth and one *decoder*.pth"
        )
    try:
        model = TinyAutoencoder(*(_read(half[0]) for half in halves)).float()
    except ValueError as error:
        raise DataError(f"{path}: is no autoencoder in the layout of TAESD: {error}") from error
    return _Tiny(model), (None, None)


def _read(path: Path) -> dict[str, Tensor]:
    """A state dict; nothing in the file can execute."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    # what torch.load and safetensors let through for damaged files
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path.name} is damaged, or holds more than tensors ({str(error)[:200]})") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path.name} holds no state dict")
    return found


def _from_diffusers(folder: Path, source: str) -> tuple[nn.Module, Own]:
    autoencoders = _diffusers(source)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = config.get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / CONFIG}: cannot be read as JSON ({error})") from error
    if kind not in autoencoders:
        raise DataError(f"{source}: holds a {kind}; wanted one of {', '.join(autoencoders)}")
    if config.get("in_channels", 3) != 3:
        raise DataError(f"{source}: takes images with {config['in_channels']} channels; wanted 3 (RGB)")
    try:
        model = autoencoders[kind].from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{source}: cannot be loaded as {kind} from {WEIGHTS}: {error}") from error
    return _Diffusers(model.float()), _own(config)


def _own(config: dict[str, Any]) -> Own:
    """Shift and scale of a config. Source: diffusers, StableDiffusionXLPipeline: z * std / scaling_factor + mean."""
    scale, std = config.get("scaling_factor"), config.get("latents_std")
    shift = config.get("latents_mean") or config.get("shift_factor") or 0.0
    if scale is None:
        return None, None
    return _each(shift), tuple(scale / value for value in std) if std else _each(scale)


def _each(value: float | Sequence[float]) -> tuple[float, ...]:
    return (float(value),) if isinstance(value, (int, float)) else tuple(map(float, value))


def _diffusers(source: str) -> dict[str, Any]:
    try:
        import diffusers
    except ImportError as error:
        raise DataError(
            f"{source}: autoencoders of this kind need diffusers, which is not installed ({error}); "
            f"pip install 'meanflow[latent]'"
        ) from error
    return {"AutoencoderKL": diffusers.AutoencoderKL, "AutoencoderTiny": diffusers.AutoencoderTiny}


def _fetched(source: str, download: bool) -> Path:
    """The folder of a hub id, from the cache or from the hub."""
    _diffusers(source)
    from huggingface_hub import constants, hf_hub_download

    owner, name, *inner = source.split("/")
    repository, inside = f"{owner}/{name}", "".join(f"{part}/" for part in inner)
    try:
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every retry
        files = [
            hf_hub_download(repository, f"{inside}{file}", local_files_only=not download) for file in (CONFIG, WEIGHTS)
        ]
    # errors of the hub and of the network are OSError or, for a malformed id, ValueError
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        wanted = f"{inside}{CONFIG} {inside}{WEIGHTS}"
        raise DataError(
            f"{source}: is no folder here, is not in the cache {constants.HF_HUB_CACHE}, and could not be fetched "
            f"({first}). Where there is a network: hf download {repository} {wanted} --local-dir {name}; "
            f"then copy the folder {name} here and pass --vae {'/'.join([name, *inner])}"
        ) from error
    return Path(files[0]).parent
