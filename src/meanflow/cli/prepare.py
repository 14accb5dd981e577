"""meanflow prepare."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from ..data import open_data, prepare
from .words import parse


@dataclass
class Prepare:
    """Write data once as memory-mapped arrays, which training reads many times faster than encoded images."""

    data: tyro.conf.Positional[str]
    """What to read: everything that `meanflow train` takes."""
    out: tyro.conf.Positional[Path]
    """New folder to write, or a file .npy (samples alone) or .npz (with labels); give it to `meanflow train` in the
    place of the data."""
    size: int | None = None
    """Side to which images are resized and cropped."""
    mode: str | None = None
    """RGB or L (grey), for data that mix both."""
    skip_broken: bool = False
    """Leave out unreadable images instead of stopping."""
    split: str = "train"
    """Part of data that have a held-out part: train, held_out or all."""
    cond: str | None = None
    """Columns that are conditions, with commas between; none for no conditions."""
    workers: int = 0
    """Processes that read beside this one; 0 reads in threads."""


def run(words: list[str]) -> int:
    """Read everything once and write it down."""
    s = parse(Prepare, words, "prepare")
    data = open_data(s.data, size=s.size, mode=s.mode, skip_broken=s.skip_broken, split=s.split, cond=s.cond)
    with tqdm(total=len(data), unit=" samples", file=sys.stderr, leave=False, disable=None) as bar:
        out = prepare(data, s.out, workers=s.workers, progress=bar.update)
    used = sum(file.stat().st_size for file in (out.iterdir() if out.is_dir() else (out,)))
    print(f"{len(data):,} samples of shape {tuple(data.shape)} in {out}, {used / 2**20:,.1f} MiB")
    print(f"Next: meanflow train {shlex.quote(str(out))}")
    return 0
