"""Law 6 through the whole loop: two processes, DDP or FSDP2, train as one process does; and what breaks it is said."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import meanflow as mf
from meanflow.training.parallel import World, rows_of

# What both the single process and the two processes run: float64, so that agreement means more than rounding.
COMMON = '''
import sys, torch
from pathlib import Path
import meanflow as mf
torch.set_num_threads(1)
OUT = Path(sys.argv[1])


class Doubles:
    """Digits in float64."""

    def __init__(self):
        self.inner = mf.data.open_data("digits")
        self.shape, self.classes, self.class_names = self.inner.shape, self.inner.classes, self.inner.class_names

    def __len__(self):
        return len(self.inner)

    def batch(self, indices):
        x, cond = self.inner.batch(indices)
        return x.double(), cond

    def description(self):
        return self.inner.description()


def train(name, mode="exact", images=48, **options):
    torch.manual_seed(0)
    net = mf.nets.DiT((1, 8, 8), patch=4, width=16, depth=2, heads=2, classes=10)
    for p in net.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.2)
    objective = mf.MeanFlow(net.double(), derivative=mode, guidance=mf.Guidance(scale=2.0, mix=0.5))
    settings = dict(images=images, batch=16, save_every=16, keep=9, log_every=32, grid_every=10**9, loggers=())
    return mf.fit(objective, Doubles(), out=OUT / name, **{**settings, **options})
'''

TOGETHER = (
    COMMON
    + """
import torch.distributed as dist
from meanflow.cli import main
dist.init_process_group("gloo")
for kind in ("ddp", "fsdp"):
    for mode in ("exact", "no_grad"):
        train(f"{kind}-{mode}", mode, parallel=kind)
train("moved", images=32, parallel="fsdp")
train("moved", images=48, parallel="ddp")
train("to-one", images=32, parallel="fsdp")
train("micro", parallel="ddp", accumulate=2)
words = ["--seeds", "0-39", "--batch", "8", "--out", str(OUT / "two.npz")]
assert main(["sample", str(OUT / "ddp-exact"), *words]) == 0

from torch.nn.parallel import DistributedDataParallel
DistributedDataParallel.forward = lambda self, *args, **kwargs: self.module(*args, **kwargs)
try:
    train("sabotage", parallel="ddp")
except RuntimeError as error:
    (OUT / f"sabotage-{dist.get_rank()}.txt").write_text(str(error))
dist.destroy_process_group()
"""
)
ALONE = (
    COMMON
    + """
for mode in ("exact", "no_grad"):
    train(f"one-{mode}", mode, accumulate=2)
train("one-micro", accumulate=4)
train("one-whole", accumulate=1)
"""
)


def launch(script, *words, processes=2, check=True):
    """A script under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run([*command, str(script), *map(str, words)], capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder in which one process and two processes have trained the same things."""
    folder = tmp_path_factory.mktemp("parallel")
    for name, text in (("together", TOGETHER), ("alone", ALONE)):
        (folder / f"{name}.py").write_text(text)
    launch(folder / "together.py", folder)
    done = subprocess.run([sys.executable, folder / "alone.py", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def difference(a, b, file="training.safetensors", part="exp_avg"):
    """Largest relative difference over the checkpoints of two runs, by default of the averaged gradients."""
    worst = 0.0
    for images in ("000000000016", "000000000032", "000000000048"):
        ours, theirs = (load_file(run / "checkpoints" / images / file) for run in (a, b))
        assert ours.keys() == theirs.keys()
        flat = [torch.cat([t.flatten() for n, t in s.items() if part in n]) for s in (ours, theirs)]
        worst = max(worst, float((flat[0] - flat[1]).norm() / flat[1].norm()))
    return worst


@pytest.mark.parametrize("mode", ["exact", "no_grad"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_have_the_gradients_of_one_over_three_steps(kind, mode, runs):
    assert difference(runs / f"{kind}-{mode}", runs / f"one-{mode}") < 1e-9
    assert difference(runs / f"{kind}-{mode}", runs / f"one-{mode}", "ema-0.999.safetensors", "") < 1e-9


def test_two_processes_with_two_micro_batches_are_one_with_four(runs):
    assert difference(runs / "micro", runs / "one-micro") < 1e-9


def test_another_number_of_slices_has_other_draws(runs):
    """The mutant: were times and noise the same for other slices, or did they not matter, this would be small."""
    assert difference(runs / "one-whole", runs / "one-exact") > 1e-2


def test_metrics_are_those_of_all_processes(runs):
    def records(name):
        lines = (runs / name / "metrics.jsonl").read_text().splitlines()
        return [{k: json.loads(line)[k] for k in ("images", "mse_v", "mse_u", "grad_norm")} for line in lines]

    assert len(records("one-exact")) == 2
    for ours, theirs in zip(records("fsdp-exact"), records("one-exact"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_run_goes_on_under_another_mode_and_number_of_processes(runs):
    """Two of three steps under FSDP2, the last under DDP; and the same with the last in one process."""
    assert difference(runs / "moved", runs / "one-exact") < 1e-9
    done = subprocess.run(
        [sys.executable, "-c", COMMON + 'train("to-one", accumulate=2)', runs], capture_output=True, text=True
    )
    assert done.returncode == 0 and "32 of 48 images: going on" in done.stderr, done.stderr
    assert difference(runs / "to-one", runs / "one-exact") < 1e-9


def test_grids_are_the_same_from_one_process_and_two(runs):
    from PIL import Image

    grids = [
        np.asarray(Image.open(runs / n / "grids/000000000048.png"), dtype=int) for n in ("fsdp-exact", "one-exact")
    ]
    assert grids[0].shape == grids[1].shape and abs(grids[0] - grids[1]).max() <= 1


def test_samples_are_the_same_to_the_last_bit(runs):
    from meanflow.cli import main

    assert (
        main(["sample", str(runs / "ddp-exact"), "--seeds", "0-39", "--batch", "8", "--out", str(runs / "one.npz")])
        == 0
    )
    one, two = (np.load(runs / f"{name}.npz") for name in ("one", "two"))
    assert one["x"].shape == (40, 1, 8, 8) and np.array_equal(one["x"], two["x"])
    assert np.array_equal(one["labels"], two["labels"]) and np.array_equal(one["seeds"], np.arange(40))


def test_gradients_that_are_not_synchronised_stop_the_run(runs):
    """The sabotage: the objective inside DDP is called directly, so nothing is averaged and nothing complains."""
    for rank in (0, 1):
        assert "different gradients after synchronisation" in (runs / f"sabotage-{rank}.txt").read_text()
    assert not list((runs / "sabotage").glob("checkpoints/*"))


@pytest.mark.parametrize(("batch", "near"), [(65, "64 and 68"), (2, ": 4$"), (126, "124 and 128")])
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest(batch, near):
    with pytest.raises(ValueError, match=near):
        rows_of(World(0, 2), batch, 2)


def test_the_slices_of_the_processes_are_the_global_order(tmp_path):
    """Position p of the stream is the same for any number of processes."""
    data = mf.data.open_data(torch.arange(40.0)[:, None].expand(40, 2))
    whole, _ = next(mf.data.batches(data, 24, seed=3, start=24))
    streams = [mf.data.batches(data, 4, seed=3, start=24 + rank * 4, stride=12) for rank in range(3)]
    parts = [next(stream)[0] for _ in range(2) for stream in streams]
    assert torch.equal(torch.cat(parts), whole)


def test_activation_checkpointing_changes_memory_and_nothing_else(tmp_path, capsys):
    from meanflow.bench.cost import peak_bytes
    from meanflow.training.blocks import recomputing

    def objective(mode):
        torch.manual_seed(0)
        net = mf.nets.DiT((1, 8, 8), patch=2, width=32, depth=4, heads=2, classes=10)
        net.blocks[2].down = torch.nn.Sequential(net.blocks[2].down, torch.nn.Dropout(0.3))
        return mf.MeanFlow(net, derivative=mode)

    for name, checkpointing, mode in (("plain", False, "no_grad"), ("again", True, "exact")):
        mf.fit(objective(mode), "digits", out=tmp_path / name, images=32, batch=16, checkpointing=checkpointing)
    assert 'derivative="no_grad"' in capsys.readouterr().err
    plain, again = (
        load_file(tmp_path / n / "checkpoints/000000000032/weights.safetensors") for n in ("plain", "again")
    )
    assert all(torch.equal(plain[n], again[n]) for n in plain)

    x, labels = mf.data.open_data("digits").batch(range(32))
    work = objective("no_grad")
    step = lambda: work(x, labels).loss.backward()  # noqa: E731
    usual = peak_bytes(step)
    with recomputing(work.net):
        less = peak_bytes(step)
    assert less < 0.6 * usual and "forward" not in vars(work.net.blocks[0])


def test_a_network_without_blocks_cannot_be_recomputed(tmp_path):
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 2)

        def forward(self, z, *, t, r, cond=None):
            return self.layer(torch.cat([z, t[:, None], r[:, None]], 1))

    with pytest.raises(ValueError, match=r"holds no\s+nn\.ModuleList"):
        mf.fit(mf.MeanFlow(Flat()), torch.randn(8, 2), out=tmp_path / "run", images=8, batch=8, checkpointing=True)
