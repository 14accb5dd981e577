"""What several processes bring, and what saving costs, on a CPU.

    python benchmarks/scaling.py processes   images/s of 2 processes over those of 1, same global batch, 1 thread each
    python benchmarks/scaling.py saving      time that a run takes with saves over the same run without

Rounds are interleaved, so that a slow moment meets both sides; printed are the median of the ratios and half the
distance between their quartiles.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr
from pathlib import Path

import torch

import meanflow as mf
from meanflow.recipes import build, recipe
from meanflow.training.log import read_metrics

BATCH = 128


def train(out: Path, images: int, save_every: int) -> float:
    """The network of the digits recipe; seconds that it took."""
    torch.set_num_threads(1)
    data = mf.data.open_data("digits")
    objective = build(recipe("digits"), data)
    options = {"images": images, "batch": BATCH, "save_every": save_every, "log_every": BATCH, "grid_every": 10**9}
    begun = time.perf_counter()
    with redirect_stderr(io.StringIO()):
        mf.fit(objective, data, out=out, loggers=(), **options)
    return time.perf_counter() - begun


def speed(out: Path, processes: int, images: int) -> float:
    """Median images a second of a run under torchrun, its first steps left out."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    words = [__file__, "one", "--out", str(out), "--images", str(images)]
    subprocess.run([*command, *words], check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return statistics.median(record["images_per_second"] for record in read_metrics(out)[5:])


def spread(ratios: list[float]) -> tuple[float, float]:
    low, middle, high = statistics.quantiles(ratios, n=4)
    return middle, (high - low) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["processes", "saving", "one"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=100 * BATCH)
    parser.add_argument("--saves", type=int, default=5, help="saves in a run")
    parser.add_argument("--out", type=Path)
    s = parser.parse_args()
    if s.what == "one":
        train(s.out, s.images, save_every=10**9)
        return
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for n in range(s.rounds):
            if s.what == "processes":
                one, two = (speed(Path(folder) / f"{n}-{size}", size, s.images) for size in (1, 2))
                ratios.append(two / one)
            else:
                # Both save at the end; the difference is in the saves between.
                without = train(Path(folder) / f"{n}-without", s.images, 10**9)
                with_saves = train(Path(folder) / f"{n}-with", s.images, s.images // (s.saves + 1))
                ratios.append(with_saves / without)
    middle, half = spread(ratios)
    print(json.dumps({"what": s.what, "ratio": round(middle, 4), "spread": round(half, 4), "rounds": s.rounds}))
    if s.what == "saving":
        # The recipe saves every so many images: the added time of a save over the time between two of them.
        every = recipe("digits").training.save_every
        share = (middle - 1) * s.images / s.saves / every
        print(
            f"{s.images // (s.saves + 1) // BATCH} steps between saves here; at the recipe's interval of {every:,} "
            f"images the added share is {100 * share:.2f} %"
        )


if __name__ == "__main__":
    main()
