"""meanflow encode."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ..data import VAE, DataError, Encoding, LatentCache, check_scale, encode, load_vae, round_trip
from ..evaluation.pictures import picture, save_picture
from ..training.run import pick_device
from .words import at_least_one, parse

POOR = 20.0  # dB; our choice: far below what working autoencoders reach on photos (25 to 40)


@dataclass
class Encode:
    """Encode a folder of images into latents, to train on with `meanflow train OUT`.

    The same command again goes on where an interrupted one stopped. Under torchrun the processes share the work.
    """

    images: tyro.conf.Positional[Path]
    """Folder of images, one sub-folder a class or none."""
    out: tyro.conf.Positional[Path]
    """Folder for the latents."""
    vae: str
    """Autoencoder: a folder (as diffusers saves it, or the two files of a TAESD) or a hub id such as
    stabilityai/sd-vae-ft-mse."""
    encoding: Annotated[Encoding, tyro.conf.arg(name="")] = field(default_factory=Encoding)
    """How."""
    workers: int | None = None
    """Threads that read images; one a core, 16 at most, by default."""
    device: str = "auto"
    """Device: cpu, cuda, or auto for the first GPU where there is one (under torchrun that of the process)."""


def run(words: list[str]) -> int:
    """Encode images."""
    s = parse(Encode, words, "encode")
    at_least_one(**({} if s.workers is None else {"workers": s.workers}))
    rank, world, local = (int(os.environ.get(name, default)) for name, default in TORCHRUN.items())
    device = f"cuda:{local}" if s.device == "auto" and world > 1 and torch.cuda.is_available() else s.device
    vae = load_vae(s.vae, device=pick_device(device))
    cache = encode(s.images, s.out, vae, s.encoding, workers=s.workers, rank=rank, world=world)
    if cache is None:
        print(f"{s.out}: the shards of process {rank} of {world} are done; others are still at work")
        return 0
    print(f"{s.out}: {cache.latents}; shape {cache.shape}, {cache.classes or 'no'} classes")
    _look(s.images, cache, vae)
    try:
        check_scale(cache)
    except DataError as error:
        print(f"meanflow: warning: {error}", file=sys.stderr)
    print(f"Next: meanflow train {s.out}")
    return 0


TORCHRUN = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}  # what torchrun tells its processes


def _look(images: Path, cache: LatentCache, vae: VAE) -> None:
    """What the autoencoder itself loses, as a number and as a picture: images above, what they decode to below."""
    x, y, psnr = round_trip(images, cache, vae)
    where = save_picture(picture(torch.cat([x, y]), len(x)), cache.root / "reconstruction.png")
    mean = sum(psnr) / len(psnr)
    print(f"reconstruction of {len(x)} images: PSNR {mean:.1f} dB ({min(psnr):.1f} to {max(psnr):.1f}) -> {where}")
    if mean < POOR:
        print(
            f"meanflow: warning: {mean:.1f} dB is poor; are these the weights of this autoencoder, "
            f"and is --size {cache.latents.size} large enough for it?",
            file=sys.stderr,
        )
