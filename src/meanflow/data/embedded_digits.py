"""The data set inside the package: 1,797 handwritten digits of 8x8 pixels, for first runs and for tests."""

from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import DataError
from .order import mix_seed
from .tensors import Tensors

SPLITS = ("train", "held_out", "all")
HELD_OUT_SHARE = 0.2


def digits(split: str = "train") -> Tensors:
    """Handwritten digits (UCI Optical Recognition, CC BY 4.0): 1,797 grey images (1, 8, 8) in [-1, 1].

    split: "all", or "held_out", a fifth of each of the 10 classes, or "train", the rest. Held out are the
    images of a class with the smallest mix_seed(position in the file), a fixed draw that needs no library.
    Both parts share their writers. Each part keeps the order of the file.
    """
    if split not in SPLITS:
        raise DataError(f"digits has no split {split!r}; choose one of {', '.join(SPLITS)}")
    images, labels = _stored()
    kept = torch.ones(len(labels), dtype=torch.bool, device="cpu")
    if split != "all":
        kept = _held_out(labels) if split == "held_out" else ~_held_out(labels)
    return Tensors(
        images[kept],
        labels[kept],
        classes=10,
        class_names=[str(digit) for digit in range(10)],
        source=f"digits:{split}",
    )


def _held_out(labels: Tensor) -> Tensor:
    chosen = torch.zeros(len(labels), dtype=torch.bool, device="cpu")
    for digit in range(10):
        positions = sorted((labels == digit).nonzero().flatten().tolist(), key=mix_seed)
        chosen[positions[: round(HELD_OUT_SHARE * len(positions))]] = True
    return chosen


@lru_cache(maxsize=1)
def _stored() -> tuple[Tensor, Tensor]:
    path = resources.files(__package__).joinpath("embedded", "digits.npz")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        arrays: dict[str, Any] = dict(stored)
    # stored as 0 to 16, so x / 8 - 1 is exact
    images = torch.from_numpy(arrays["images"]).float().div(8).sub(1)
    return images[:, None], torch.from_numpy(arrays["labels"]).long()
