"""Latents that `meanflow encode` wrote, drawn anew from their posterior at every step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.conditions import Cond
from .errors import DataError
from .latent_shards import HEADER, PLAN, Arrays, file_size, mapped, read_json, shard_path
from .latents import LatentContract


class LatentCache:
    """A folder of latents (C, h, w), scaled for a network; it stays on disk, memory-mapped.

    With a generator, `batch` draws from the posterior and chooses the flipped image or not by a coin; without one it
    gives the posterior's mean of the image as it is. `latents` is the contract that decoding follows.
    Raises DataError, naming the shard and what to do, for a cache that is not whole.
    """

    random = True

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.source = str(root)
        if not (self.root / HEADER).is_file():
            raise DataError(_unfinished(self.root))
        header = read_json(self.root / HEADER)
        try:
            self.latents = LatentContract.from_dict(header["latents"])
            self.shape: tuple[int, ...] = tuple(header["shape"])
            self.classes: int | None = header["classes"]
            names = header["class_names"]
            self.skipped = frozenset(header["skipped"])
            self._shards = [(int(shard["rows"]), int(shard["size"])) for shard in header["shards"]]
            self._fingerprint, self._command = str(header["fingerprint"]), str(header["command"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{self.root / HEADER}: is damaged ({error!r})") from error
        self.class_names = tuple(names) if names is not None else None
        self._starts = np.cumsum([0, *(rows for rows, _ in self._shards)])
        self._maps: dict[int, Arrays] = {}
        self._check_sizes()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def batch(self, indices: Sequence[int] | Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Cond]:
        """Latents float32 [B, C, h, w] and labels int64 [B] where there are classes.

        generator: on the CPU; its state decides flips and posterior draws, None takes neither.
        """
        index = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        if not len(index) or int(index.min()) < 0 or int(index.max()) >= len(self):
            raise DataError(f"{self.root}: a batch wants indices from 0 to {len(self) - 1}, got {index.tolist()[:8]}")
        flips = torch.zeros(len(index), dtype=torch.int64)
        if generator is not None and self.latents.flip:
            flips = torch.randint(2, (len(index),), generator=generator)
        rows = self._rows(index.numpy(), flips.numpy())
        # posterior of the VAE: z = mean + std e
        z = torch.from_numpy(rows["mean"]).float()
        if generator is not None and self.latents.posterior:
            z += torch.from_numpy(rows["std"]).float() * torch.randn(z.shape, generator=generator)
        return self.latents.normalise(z), torch.from_numpy(rows["labels"]) if self.classes is not None else None

    def description(self) -> dict[str, Any]:
        """Kind, source, length, shape, classes, fingerprint and the latent contract, ready for JSON."""
        return {
            "kind": "latents",
            "source": self.source,
            "length": len(self),
            "shape": list(self.shape),
            "classes": self.classes,
            "fingerprint": self._fingerprint,
            "latents": self.latents.to_dict(),
        }

    def _rows(self, index: np.ndarray[Any, Any], flips: np.ndarray[Any, Any]) -> Arrays:
        """The asked rows of every array, each shard read once."""
        numbers = np.searchsorted(self._starts, index, side="right") - 1
        found: Arrays = {}
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            rows, shard = index[places] - self._starts[number], self._shard(int(number))
            for name, array in shard.items():
                part = array[rows] if name == "labels" else array[rows, flips[places]]
                if name not in found:
                    found[name] = np.empty((len(index), *part.shape[1:]), part.dtype)
                found[name][places] = part
        return found

    def _shard(self, number: int) -> Arrays:
        if number not in self._maps:
            self._maps[number] = mapped(shard_path(self.root, number))
        return self._maps[number]

    def _check_sizes(self) -> None:
        """Truncated and missing shards are found before training, not hours into it."""
        for number, (_, size) in enumerate(self._shards):
            path = shard_path(self.root, number)
            found = file_size(path)
            if found != size:
                state = "is missing" if found is None else f"has {found:,} bytes instead of {size:,}"
                raise DataError(f"{path}: {state}; encode it again with the same command: {self._command}")


def is_latent_cache(folder: Path) -> bool:
    """Whether a folder holds latents, finished or not."""
    return (folder / HEADER).is_file() or (folder / PLAN).is_file()


def _unfinished(root: Path) -> str:
    if not (root / PLAN).is_file():
        return f"{root}: holds no latents ({HEADER} is missing); make them with meanflow encode IMAGES {root} --vae VAE"
    plan = read_json(root / PLAN)
    done = sum(shard_path(root, number).is_file() for number in range(plan["shards"]))
    return (
        f"{root}: encoding is not finished ({done} of {plan['shards']} shards are there); go on with the same "
        f"command: {plan['command']}"
    )
