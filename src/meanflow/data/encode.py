"""Images to a cache of latents: shard by shard, so that an interrupted encode goes on and several processes share."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import reduce
from itertools import islice
from operator import add
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from . import fingerprint
from .crop import ADM_CENTRE
from .errors import DataError
from .files import write_text
from .images import Bytes
from .latent_cache import LatentCache
from .latent_shards import (
    FORMAT,
    HEADER,
    PLAN,
    SHARDS,
    Moments,
    Part,
    file_size,
    is_whole,
    read_json,
    read_part,
    shard_path,
    write_shard,
)
from .latents import LatentContract
from .pool import Pool
from .squares import Squares
from .vae import VAE

DTYPES = ("float16", "float32")
Batch = tuple[Bytes, list[int], list[str]]  # squares, their places in the listing, and the names of broken files


@dataclass(frozen=True)
class Encoding:
    """How images become latents. Raises DataError for settings that make no sense."""

    size: int = 256
    """Side of the centre square, cut as ADM cuts it, in pixels."""
    flip: bool = True
    """Encode the mirrored image too, unless --no-flip is given."""
    scale: str = "auto"
    """config: shift and scale of the VAE's config; measured: those that give every channel mean 0 and standard
    deviation 1; auto: the first where there is one; or a number."""
    shard_size: int = 1024
    """Images a shard, the most that an interruption costs."""
    dtype: Literal["float16", "float32"] = "float16"
    """Of the stored latents; float16 rounds them by up to 0.05 %."""
    batch: int = 32
    """Images a call of the VAE."""
    skip_broken: bool = False
    """Leave unreadable images out instead of stopping."""

    def __post_init__(self) -> None:
        for name in ("size", "shard_size", "batch"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dtype not in DTYPES:
            raise DataError(f"dtype must be {' or '.join(DTYPES)}, got {self.dtype!r}")
        if self.scale not in ("auto", "config", "measured") and not _positive(self.scale):
            raise DataError(f"scale must be auto, config, measured or a positive number, got {self.scale!r}")

    def command(self, images: Path, out: Path, vae: str) -> str:
        """The command that encodes like this."""
        words = ["meanflow", "encode", str(images), str(out), "--vae", vae]
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                flag = {"flip": "--no-flip"}.get(field.name, f"--{field.name.replace('_', '-')}")
                words += [flag] if isinstance(value, bool) else [flag, str(value)]
        return shlex.join(words)


def encode(
    images: str | Path,
    out: str | Path,
    vae: VAE,
    encoding: Encoding | None = None,
    *,
    workers: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> LatentCache | None:
    """Encode a folder of images into `out`; the same call again goes on, and encodes damaged shards anew.

    workers: threads that read images. rank, world: which of how many processes this is; each encodes every world-th
    shard, and whoever finds all shards there at its end writes the header. Returns the cache, or None while other
    processes are still at work. Raises DataError when `out` holds an encode of something else, and naming images that
    cannot be read.
    """
    job = _Job(Path(images), Path(out), vae, encoding or Encoding(), Pool(workers))
    job.open()
    job.encode(job.missing(range(rank, job.shards, world)))
    return job.finish()


def round_trip(images: str | Path, cache: LatentCache, vae: VAE, count: int = 8) -> tuple[Tensor, Tensor, list[float]]:
    """Evenly strided images [B, 3, H, W] in [-1, 1], what their stored latents decode to, and the PSNR of each, dB."""
    squares = Squares(Path(images))
    places, index = squares.places(cache.skipped), [i * len(cache) // count for i in range(min(count, len(cache)))]
    pixels = [squares.read(places[i], cache.latents.size) for i in index]
    x = torch.from_numpy(np.stack(pixels)).float() / 127.5 - 1
    y = cache.latents.decode(cache.batch(index)[0], vae)
    # PSNR for values in [0, 1]: -10 log10 of the mean squared error, which is a quarter of that in [-1, 1]
    return x, y, (-10 * torch.log10((x - y).square().mean((1, 2, 3)) / 4)).tolist()


class _Job:
    """One encode: what is to be done, what is done, and the doing."""

    def __init__(self, images: Path, out: Path, vae: VAE, how: Encoding, pool: Pool) -> None:
        if how.size % vae.downsampling:
            raise DataError(
                f"size must be a multiple of {vae.downsampling}, by which the VAE divides it, got {how.size}"
            )
        if how.scale == "config" and vae.scale is None:
            raise DataError(f"{vae.id}: has no scale in its config; use --scale measured")
        self.images, self.out, self.vae, self.how, self.pool = images, out, vae, how, pool
        self.squares = Squares(images)
        self.shards = -(-len(self.squares) // how.shard_size)

    def open(self) -> None:
        """Write down what is to be encoded, or make sure that the folder holds the same."""
        self.out.mkdir(parents=True, exist_ok=True)
        plan, file = self._plan(), self.out / PLAN
        if not file.exists():
            # another process may have begun at this moment
            strange = [p.name for p in self.out.iterdir() if p.name[0] != "." and p.name not in (PLAN, SHARDS, HEADER)]
            if strange:
                raise DataError(f"{self.out}: is not empty ({strange[0]}) and holds no latents; choose another folder")
            self._write(file, plan)
        saved = read_json(file)
        differ = [key for key in IDENTITY if saved.get(key) != plan[key]]
        if differ:
            lines = [f"{key}: {_shown(saved, key)} -> {_shown(plan, key)}" for key in differ]
            raise DataError(
                f"{self.out} holds latents of another encode; it differs in\n  " + "\n  ".join(lines) + "\n"
                "Choose another folder, or give the settings of that encode to go on with it"
            )

    def missing(self, numbers: Sequence[int]) -> list[int]:
        """Those of these shards that are not there, whole."""
        whole = self.pool.map(lambda number: is_whole(self.out, number), numbers)
        return [number for number, done in zip(numbers, whole, strict=True) if not done]

    def encode(self, numbers: Sequence[int]) -> None:
        """Encode these shards, the next images read while the present ones are encoded."""
        chunks = [chunk for number in numbers for chunk in self._chunks(number)]
        total = sum(map(len, chunks))
        batches = self._read_ahead(chunks)
        with tqdm(total=total, unit="img", dynamic_ncols=True, disable=not sys.stderr.isatty()) as bar:
            for done, number in enumerate(numbers, 1):
                self._encode_shard(number, islice(batches, len(self._chunks(number))), bar)
                if bar.disable:
                    print(f"{self.out}: {done} of {len(numbers)} shards encoded", file=sys.stderr, flush=True)

    def finish(self) -> LatentCache | None:
        """Write the header once all shards are there."""
        parts = [read_part(self.out, number) for number in range(self.shards)]
        if not all(part and file_size(shard_path(self.out, n)) == part.size for n, part in enumerate(parts)):
            return None
        self._write(self.out / HEADER, self._header([part for part in parts if part]))
        return LatentCache(self.out)

    def _write(self, file: Path, content: dict[str, Any]) -> None:
        # every process of torchrun may come here at the same moment
        write_text(file, json.dumps(content, indent=1), shared=True)

    def _plan(self) -> dict[str, Any]:
        sizes = self.pool.map(self.squares.file_bytes, range(len(self.squares)))
        return {
            "format": FORMAT,
            "command": self.how.command(self.images, self.out, self.vae.id),
            "vae": self.vae.id,
            "vae_fingerprint": self.vae.fingerprint,
            "crop": ADM_CENTRE,
            "size": self.how.size,
            "flip": self.how.flip,
            "dtype": self.how.dtype,
            "shard_size": self.how.shard_size,
            "images": len(self.squares),
            "files": fingerprint.of_files(zip(self.squares.names, sizes, strict=True)),
            "shards": self.shards,
        }

    def _chunks(self, number: int) -> list[list[int]]:
        """The images of a shard, in calls of the VAE."""
        first = number * self.how.shard_size
        inside = range(first, min(first + self.how.shard_size, len(self.squares)))
        return [list(inside[i : i + self.how.batch]) for i in range(0, len(inside), self.how.batch)]

    def _read_ahead(self, chunks: Sequence[list[int]]) -> Iterator[Batch]:
        with ThreadPoolExecutor(1, thread_name_prefix="meanflow-encode") as reader:
            ahead = [reader.submit(self._read, chunk) for chunk in chunks[:1]]
            for following in chunks[1:]:
                ahead.append(reader.submit(self._read, following))
                yield ahead.pop(0).result()
            yield from (last.result() for last in ahead)

    def _read(self, chunk: list[int]) -> Batch:
        def square_or_error(place: int) -> Bytes | DataError:
            try:
                return self.squares.read(place, self.how.size)
            except DataError as error:
                return error

        found = list(self.pool.map(square_or_error, chunk))
        broken = [square for square in found if isinstance(square, DataError)]
        if broken and not self.how.skip_broken:
            raise broken[0]
        good = [square for square in found if not isinstance(square, DataError)]
        kept = [place for place, square in zip(chunk, found, strict=True) if not isinstance(square, DataError)]
        pixels = np.stack(good) if good else np.empty((0, 3, self.how.size, self.how.size), np.uint8)
        return pixels, kept, [self.squares.names[place] for place in chunk if place not in kept]

    def _encode_shard(self, number: int, batches: Iterable[Batch], bar: Any) -> None:
        collected: dict[str, list[Tensor]] = defaultdict(list)
        skipped: list[str] = []
        for pixels, kept, broken in batches:
            skipped += broken
            for name, value in self._latents(pixels, kept).items() if kept else ():
                collected[name].append(value)
            bar.update(len(kept) + len(broken))
        if not collected:
            raise DataError(f"{self.images}: all images of shard {number} are broken, the first: {skipped[0]}")
        if skipped:
            warnings.warn(f"{len(skipped)} images are broken and left out, the first: {skipped[0]}", stacklevel=2)
        write_shard(self.out, number, {name: torch.cat(values) for name, values in collected.items()}, skipped)

    def _latents(self, pixels: Bytes, places: list[int]) -> dict[str, Tensor]:
        """mean and std [B, 1 or 2, C, h, w], the second of the mirrored image, and labels [B]."""
        x = torch.from_numpy(pixels).to(self.vae.device).float().div_(127.5).sub_(1)
        found = [self.vae.encode(variant) for variant in ([x, x.flip(-1)] if self.how.flip else [x])]
        dtype = getattr(torch, self.how.dtype)
        tensors = {"mean": torch.stack([mean for mean, _ in found], 1).to("cpu", dtype)}
        if self.vae.posterior:
            tensors["std"] = torch.stack([std for _, std in found], 1).to("cpu", dtype)
        for value in tensors.values():
            bad = ~value.flatten(1).isfinite().all(1)
            if bad.any():
                title = self.squares.title(places[int(bad.nonzero()[0])])
                raise DataError(f"{title}: its latents are NaN, Inf or too large for {self.how.dtype}")
        if self.squares.labels is not None:
            tensors["labels"] = torch.tensor([self.squares.labels[place] for place in places])
        return tensors

    def _header(self, parts: list[Part]) -> dict[str, Any]:
        rows, names = sum(part.rows for part in parts), self.squares.class_names
        side = self.how.size // self.vae.downsampling
        return {
            "format": FORMAT,
            "command": self.how.command(self.images, self.out, self.vae.id),
            "shape": [self.vae.channels, side, side],
            "classes": len(names) if names else None,
            "class_names": names,
            "skipped": [name for part in parts for name in part.skipped],
            "latents": self._contract(rows, reduce(add, (part.moments for part in parts))).to_dict(),
            "fingerprint": hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest(),
            "shards": [{"rows": part.rows, "size": part.size} for part in parts],
        }

    def _contract(self, count: int, moments: Moments) -> LatentContract:
        shift, scale, scaled_by = self._scaling(moments)
        each = range(self.vae.channels)
        shifts, scales = ([values[i % len(values)] for i in each] for values in (shift, scale))
        return LatentContract(
            vae=self.vae.id,
            vae_kind=self.vae.kind,
            vae_fingerprint=self.vae.fingerprint,
            channels=self.vae.channels,
            downsampling=self.vae.downsampling,
            shift=shift,
            scale=scale,
            scaled_by=scaled_by,
            own_scale=self.vae.scale,
            crop=ADM_CENTRE,
            size=self.how.size,
            flip=self.how.flip,
            posterior=self.vae.posterior,
            count=count,
            mean=tuple((m - s) * k for m, s, k in zip(moments.mean(), shifts, scales, strict=True)),
            std=tuple(d * k for d, k in zip(moments.std(), scales, strict=True)),
        )

    def _scaling(self, moments: Moments) -> tuple[tuple[float, ...], tuple[float, ...], str]:
        """Shift, scale and where they come from."""
        wanted = self.how.scale
        if wanted == "auto":
            wanted = "measured" if self.vae.scale is None else "config"
        if wanted == "config":
            return self.vae.shift or (0.0,), self.vae.scale or (1.0,), wanted
        if wanted != "measured":
            return self.vae.shift or (0.0,), (float(wanted),), "given"
        flat = [channel for channel, std in enumerate(moments.std()) if not std > 0]
        if flat:
            raise DataError(f"{self.out}: channel {flat[0]} of the latents is constant; use --scale with a number")
        return moments.mean(), tuple(1 / std for std in moments.std()), wanted


# What must be the same for an encode to go on; paths may change, and the scale is in the header alone.
IDENTITY = ("vae_fingerprint", "crop", "size", "flip", "dtype", "shard_size", "images", "files")


def _shown(plan: dict[str, Any], key: str) -> str:
    if key == "vae_fingerprint":
        return f"{plan.get('vae')} ({str(plan.get(key))[:12]})"
    return str(plan.get(key))[:12] if key == "files" else str(plan.get(key))


def _positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False
