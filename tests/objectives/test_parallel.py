"""Law 6, first part: DDP and FSDP2 around the objective give the gradients of one process, over three steps."""

import json
import subprocess
import sys

import pytest

SCRIPT = '''
import json, sys, torch, torch.distributed as dist
import meanflow as mf
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
out = sys.argv[1]


def make(mode):
    torch.manual_seed(0)
    net = mf.nets.DiT((1, 8, 8), patch=4, width=32, depth=2, heads=4, classes=3)
    for p in net.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.2)
    return mf.MeanFlow(net.double(), derivative=mode, guidance=mf.Guidance(scale=2.0, mix=0.5))


class Fixed(torch.nn.Module):
    """The objective on given draws, so that two processes and one see the same rows."""

    def __init__(self, objective):
        super().__init__()
        self.objective = objective

    def forward(self, rows, given):
        x, labels, noise, t, r, dropped = (g[rows] for g in given)
        return self.objective.loss(x, labels, noise=noise, t=t, r=r, dropped=dropped).loss


def draws(step):
    g = torch.Generator().manual_seed(step)
    x, noise = torch.randn(2, 16, 1, 8, 8, generator=g, dtype=torch.float64)
    t, r = torch.rand(2, 16, generator=g, dtype=torch.float64).sort(0, descending=True).values
    r = torch.where(torch.arange(16) % 2 == 0, t, r)
    return x, torch.arange(16) % 3, noise, t, r, torch.arange(16) % 5 == 0


def train(module, rows, full=lambda p: p):
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    norms = []
    for step in range(3):
        optimizer.zero_grad()
        module(rows, draws(step)).backward()
        norms.append(torch.cat([full(p.grad).flatten() for p in module.parameters() if p.grad is not None]))
        optimizer.step()
    return norms


mine = slice(rank * 8, rank * 8 + 8)


def worst(kind, mode):
    alone, module = train(Fixed(make(mode)), slice(None)), Fixed(make(mode))
    if kind == "ddp":
        together = train(DistributedDataParallel(module), mine)
    elif kind == "fsdp":
        for block in module.objective.net.blocks:
            fully_shard(block)
        fully_shard(module)
        together = train(module, mine, lambda g: g.full_tensor())
    else:
        together = train(module, mine)
    return max(float((a - b).norm() / b.norm()) for a, b in zip(together, alone))


cases = [("ddp", "exact"), ("ddp", "no_grad"), ("fsdp", "exact"), ("fsdp", "no_grad"), ("none", "exact")]
json.dump({f"{kind} {mode}": worst(kind, mode) for kind, mode in cases}, open(f"{out}.{rank}", "w"))
dist.destroy_process_group()
'''


@pytest.fixture(scope="module")
def worst(tmp_path_factory):
    """Largest difference to one process's gradients, by kind of wrapper and derivative mode."""
    folder = tmp_path_factory.mktemp("parallel")
    script, out = folder / "script.py", folder / "worst"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, str(script), str(out)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = [json.loads(out.with_suffix(f".{rank}").read_text()) for rank in (0, 1)]
    return {case: max(rank[case] for rank in ranks) for case in ranks[0]}


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("mode", ["exact", "no_grad"])
def test_two_processes_have_the_gradients_of_one(kind, mode, worst):
    assert worst[f"{kind} {mode}"] < 1e-9


def test_without_synchronisation_they_differ(worst):
    """The mutant: each process alone on its half."""
    assert worst["none exact"] > 1e-2
