"""Laws about cost, by counting: FLOPs and bytes of a step, and agreement with the authors' algorithm."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from meanflow import AdaptiveWeight, FlowMatching, Guidance, MeanFlow, Times
from meanflow.bench import StepSettings, authors_loss, flops, peak_bytes, price_step, step_table
from meanflow.bench.cost import ratio
from meanflow.cli import main
from meanflow.core import derivative
from meanflow.nets import DiT
from oracles import relative


@pytest.fixture(scope="module")
def price():
    """Width and tokens of the project's claim; fewer blocks and samples, on which the ratios hardly depend."""
    return price_step(StepSettings(depth=2, batch=16, rounds=1))


def test_unguided_step_costs_what_the_mathematics_asks(price):
    row = price["rows"][0]
    assert row["guidance"] == "none"
    assert row["flops_ratio"] <= 1.09 and row["memory_ratio"] <= 1.20
    # The authors' algorithm: derivative on all rows with a graph through it.
    assert 1.64 < row["authors_flops_ratio"] < 1.72 and row["authors_memory_ratio"] > 2


def test_guided_step_costs_what_the_mathematics_asks(price):
    row = price["rows"][1]
    assert row["guidance"] == "w = 1, k = 0.5"
    assert row["flops_ratio"] <= 1.47 and row["memory_ratio"] <= 1.20
    assert 2.28 < row["authors_flops_ratio"] < 2.40


def test_gradients_are_those_of_the_authors_algorithm(price):
    assert all(row["gradient_difference"] <= 1e-5 for row in price["rows"])


def test_the_table_says_what_was_measured(price):
    text = step_table(price)
    assert "authors algorithm" in text and "batch 16" in text and torch.__version__ in text


class ConvNet(nn.Module):
    """A convolutional network of the kind of a U-Net: residual blocks with GroupNorm, times added."""

    def __init__(self, width=64, depth=4):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(depth)
        )

    def forward(self, z, *, t, r, cond=None):
        h = self.first(z) + self.time(torch.stack([t, t - r], 1))[:, :, None, None]
        for block in self.blocks:
            h = h + block(h)
        return self.last(F.silu(h))


def step(net, objective, *args, **given):
    def work():
        net.zero_grad(set_to_none=True)
        objective.loss(*args, **given).loss.backward()

    return work


def test_convolutional_network_at_share_a_quarter_has_its_own_limit():
    """Share r = t of 0.25, as for CIFAR-10: (3 + 0.75) / 3 = 1.25 by the mathematics, authors' algorithm 1.667."""
    net = ConvNet()
    x, noise = torch.randn(2, 16, 3, 16, 16)
    t, r, _ = Times(share_equal=0.25).draw(16)
    flow = flops(step(net, FlowMatching(net), x, noise=noise, t=t))
    ours = flops(step(net, MeanFlow(net), x, noise=noise, t=t, r=r))
    assert ours / flow <= 1.27
    theirs = flops(lambda: authors_loss(net, x, None, noise=noise, t=t, r=r).backward())
    assert theirs / flow > 1.6


def test_taking_torch_func_jvp_instead_is_noticed():
    """The mutant: without dual tensors the zero tangents of the weights are multiplied."""
    net = ConvNet()
    x, noise = torch.randn(2, 16, 3, 16, 16)
    t, r, _ = Times(share_equal=0.25).draw(16)
    objective = MeanFlow(net)
    work = step(net, objective, x, noise=noise, t=t, r=r)
    cheap = flops(work)
    derivative._UNFOLLOWED.add(net)
    assert flops(work) > 1.15 * cheap


@pytest.mark.parametrize("mode", ["exact", "no_grad"])
def test_lean_modes_store_no_more_than_flow_matching(mode):
    net = ConvNet()
    x, noise = torch.randn(2, 16, 3, 16, 16)
    t, r, _ = Times(share_equal=0.25).draw(16)
    flow = peak_bytes(step(net, FlowMatching(net), x, noise=noise, t=t))
    ours = peak_bytes(step(net, MeanFlow(net, derivative=mode), x, noise=noise, t=t, r=r))
    assert ours / flow <= 1.20
    theirs = peak_bytes(lambda: authors_loss(net, x, None, noise=noise, t=t, r=r).backward())
    assert theirs / flow > 1.8


@pytest.mark.parametrize(("w", "k", "p"), [(1.0, 0.0, 1.0), (1.0, 0.5, 1.0), (3.0, 0.0, 0.5)])
def test_the_two_statements_of_the_algorithm_agree_in_float64(w, k, p):
    net = DiT((1, 8, 8), patch=4, width=32, depth=2, heads=4, classes=3).double()
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    x, noise = torch.randn(2, 16, 1, 8, 8, dtype=torch.float64)
    t, r, _ = Times().draw(16)
    t, r, labels, dropped = t.double(), r.double(), torch.arange(16) % 3, torch.arange(16) < 2
    guidance = Guidance.from_paper(w, k)
    ours = MeanFlow(net, guidance=guidance, weighting=AdaptiveWeight(p)).loss(
        x, labels, noise=noise, t=t, r=r, dropped=dropped
    )
    theirs = authors_loss(net, x, labels, noise=noise, t=t, r=r, dropped=dropped, null=3, w=w, k=k, p=p)
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])
        for loss in (ours.loss, theirs)
    ]
    assert relative(gradients[0], gradients[1]) < 1e-9 and relative(ours.loss, theirs) < 1e-12


def test_peak_bytes_is_exact_on_a_known_program():
    def work():
        a = torch.ones(1000)
        b = a + 1
        del a
        c = b * 2
        view = b.view(10, 100)
        del b, view
        return c, torch.zeros(250)

    assert peak_bytes(work) == 2 * 4000


def test_ratio_is_the_median_over_rounds():
    middle, spread = ratio([2.0, 4.0, 30.0], [1.0, 2.0, 3.0])
    assert middle == 2.0 and spread >= 0


def test_bench_commands_print_json(capsys):
    small = ["--width", "32", "--depth", "1", "--heads", "2", "--size", "8", "--batch", "8", "--rounds", "1"]
    assert main(["bench", "step", *small, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    wanted = {"guidance", "flops_ratio", "memory_ratio", "time_ratio", "speedup_vs_authors"}
    assert len(rows) == 2 and all(wanted <= row.keys() for row in rows)
    assert all(math.isfinite(row["time_ratio"]) for row in rows)
    assert main(["bench", "sample", "--batch", "4", "--rounds", "2", "--json"]) == 0
    assert [row["steps"] for row in json.loads(capsys.readouterr().out)["rows"]] == [1, 2, 4]
    assert main(["bench", "stpe"]) == 2
    assert "did you mean step?" in capsys.readouterr().err
