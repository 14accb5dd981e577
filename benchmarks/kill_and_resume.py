"""Kill a small digits run with SIGKILL, again and again, and compare every continuation with a run left alone.

    python benchmarks/kill_and_resume.py                          20 kills of one process, every second one in a save
    python benchmarks/kill_and_resume.py --processes 2 --kills 5  one of two processes under torchrun is killed

Each kill has a run of its own: it is killed once and then given the same call again. Counted are continuations whose
weights, averages, moments and metrics equal those of the uninterrupted run bit for bit, and checkpoints lost: ones seen
before the kill that are gone or damaged after it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch._dynamo  # loaded by the first optimiser step, in three seconds: once here, not in every fork
from safetensors.torch import load_file

import meanflow as mf
from meanflow.training.checkpoint import CheckpointError, checkpoints, verify
from meanflow.training.log import VARYING, read_metrics

BATCH = 64


def train(out: Path, images: int) -> None:
    """The run: dropout, coins and guidance draw random numbers, and nearly every step is saved."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = mf.nets.DiT((1, 8, 8), patch=4, width=64, depth=2, heads=4, classes=10)
    net.blocks[0].down = torch.nn.Sequential(net.blocks[0].down, torch.nn.Dropout(0.1))
    objective = mf.MeanFlow(net, guidance=mf.Guidance(scale=2.0, mix=0.5, drop_rows="coin"))
    options = {"images": images, "batch": BATCH, "save_every": BATCH, "milestone_every": 5 * BATCH, "keep": 3}
    mf.fit(objective, "digits", out=out, log_every=192, grid_every=10 * BATCH, ema=(0.9, 0.99), loggers=(), **options)


def alone(out: Path, log: Path, images: int) -> Started:
    """The run in a fork of this process, which has torch loaded already."""
    pid = os.fork()
    if pid == 0:
        with open(log, "ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            train(out, images)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return Started(out, lambda: os.waitpid(pid, 0)[1], lambda: os.waitid(os.P_PID, pid, look) is not None, [pid])


def together(out: Path, log: Path, images: int, processes: int) -> Started:
    """The run under torchrun; each process says its number in a file."""
    script = log.with_suffix(".py")
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom pathlib import Path\n"
        f"Path({str(log)!r} + '.' + os.environ['RANK']).write_text(str(os.getpid()))\n"
        f"from kill_and_resume import train\ntrain(Path({str(out)!r}), {images})\n"
    )
    for rank in range(processes):
        Path(f"{log}.{rank}").unlink(missing_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with open(log, "ab") as file:
        launched = subprocess.Popen([*command, str(script)], stdout=file, stderr=file)
    pids: list[int] = []
    while len(pids) < processes:
        time.sleep(0.05)
        assert launched.poll() is None, log.read_text()
        pids = [int(p.read_text()) for r in range(processes) if (p := Path(f"{log}.{r}")).exists() and p.read_text()]
    return Started(out, launched.wait, lambda: launched.poll() is not None, pids)


class Started:
    """A run that is under way: how to wait for it, whether it has ended, and the processes to kill."""

    def __init__(self, out, wait, ended, pids):
        self.out, self.wait, self.ended, self.pids = out, wait, ended, pids

    def kill(self, images: int, saving: bool, rng: random.Random) -> set[str] | None:
        """Kill one process at a random moment after the checkpoint of `images` images, or in a save after it.

        Returns the checkpoints that were seen just before, or None when the run had ended by then.
        """
        folder, begun = self.out / "checkpoints", time.perf_counter()
        while not (folder / f"{images:012d}").exists():
            if self.ended():
                return None
            time.sleep(0.0005)
        # About the time of a step, as far as it can be told from the steps before.
        step = (time.perf_counter() - begun) / (images / BATCH)
        if saving:
            while not list(folder.glob(".*.tmp")):
                if self.ended():
                    return None
            time.sleep(rng.uniform(0, 0.004))
        else:
            time.sleep(rng.uniform(0, step))
        before = {path.name for path in checkpoints(self.out / "checkpoints")[-1:]}
        os.kill(rng.choice(self.pids), signal.SIGKILL)
        return before


def state(out: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint."""
    last = checkpoints(out / "checkpoints")[-1]
    return {
        f"{file.name}/{name}": t for file in sorted(last.glob("*.safetensors")) for name, t in load_file(file).items()
    }


def records(out: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in record.items() if k not in VARYING} for record in read_metrics(out)]


def lost(out: Path, before: set[str]) -> int:
    """Checkpoints seen before the kill that are gone, unless newer ones took their place, and damaged ones."""
    found = checkpoints(out / "checkpoints")
    newest = found[-1].name if found else ""
    missing = sum(name > newest for name in before)
    for path in found:
        try:
            verify(path)
        except CheckpointError:
            missing += 1
    return missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--seed", type=int, default=0)
    s = parser.parse_args()
    rng = random.Random(s.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)

        def start(out: Path) -> Started:
            log = home / f"{out.name}.log"
            return alone(out, log, s.images) if s.processes == 1 else together(out, log, s.images, s.processes)

        assert start(home / "whole").wait() == 0, (home / "whole.log").read_text()
        wanted, lines = state(home / "whole"), records(home / "whole")
        counts = {"kills": 0, "in_saves": 0, "bit_equal": 0, "lost_checkpoints": 0, "explained": 0}
        trial = 0
        while counts["kills"] < s.kills:
            trial += 1
            assert trial < 10 * s.kills, "the runs end before they can be killed"
            out, saving = home / f"run{trial}", trial % 2 == 0
            run = start(out)
            before = run.kill(rng.randrange(1, s.images // BATCH - 1) * BATCH, saving, rng)
            begun, code = time.perf_counter(), run.wait()
            if before is None or code == 0:  # it was quicker
                continue
            assert s.processes == 1 or time.perf_counter() - begun < 120, "the process left alone did not end"
            text = (home / f"run{trial}.log").read_text()
            counts["kills"] += 1
            counts["explained"] += "gone or silent" in text
            counts["in_saves"] += bool(list((out / "checkpoints").glob(".*.tmp")))
            counts["lost_checkpoints"] += lost(out, before)
            assert start(out).wait() == 0, (home / f"run{trial}.log").read_text()
            got, end = state(out), int(checkpoints(out / "checkpoints")[-1].name)
            equal = got.keys() == wanted.keys() and all(torch.equal(got[n], wanted[n]) for n in wanted)
            counts["bit_equal"] += equal and end == s.images and records(out) == lines
    print(json.dumps({"processes": s.processes, **counts}))


if __name__ == "__main__":
    main()
