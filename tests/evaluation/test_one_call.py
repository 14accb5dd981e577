"""How good one call is: a field that keeps all laws, fields that break one, and a field without averages."""

import json
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from meanflow.core import EulerField, like, sample
from meanflow.evaluation import heat_map, one_call
from meanflow.evaluation.heat import CELL, LEFT, TOP, shade
from meanflow.evaluation.one_call import drawn, planned_calls
from meanflow.nets import MLP
from oracles import SHAPES, GaussianField


def noise(n=32, shape=(2,), seed=0):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cells(grid):
    return [value for row in grid for value in row if value is not None]


class Wrong(GaussianField):
    """The exact field with one mistake on r < t; r = t is right, so its own velocity is too."""

    def __init__(self, mistake):
        super().__init__()
        self.mistake = mistake

    def forward(self, z, *, t, r, cond=None):
        u, v = super().forward(z, t=t, r=r), super().forward(z, t=t, r=t)
        if self.mistake == "sign":  # u = v + (t - r) du/dt to first order
            return 2 * v - u
        if self.mistake == "instantaneous":
            return v
        return u + 0.5 * like(t - r, z)  # a term whose only derivative is that in time


class Counting(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, z, *, t, r, cond=None):
        self.calls += 1
        return self.net(z, t=t, r=r, cond=cond)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_exact_field_loses_nothing(shape):
    found = one_call(GaussianField(), noise(shape=shape), many=16, grid=4)
    assert max(d.worst for d in found.distances) < 1e-10
    assert len(cells(found.residual)) == len(cells(found.additivity)) == 10
    assert max(cells(found.residual) + cells(found.additivity)) < 1e-10


@pytest.mark.parametrize("mistake", ["sign", "instantaneous", "dt/dt"])
def test_a_field_that_breaks_the_identity_shows_it(mistake):
    found = one_call(Wrong(mistake), noise(), many=16, grid=4)
    assert found.worst_residual[0] > 0.1 and found.worst_additivity[0] > 0.03
    assert found.distances[0].mean > 0.1


def test_a_derivative_that_forgets_time_is_noticed(monkeypatch):
    """The mutant: du/dt without its part along t; even the exact field then seems to break the identity."""
    module = import_module("meanflow.evaluation.one_call")  # the package has the function under this name
    right = module.jvp
    monkeypatch.setattr(module, "jvp", lambda n, z, t, r, c, step: right(n, z, t, r, c, (step[0], None, None)))
    assert one_call(GaussianField(), noise(), many=16, grid=4).worst_residual[0] > 0.1


def test_few_euler_steps_show_the_curvature_of_the_path():
    """A velocity field taken for an average: the residual is (t - r) |dv/dt| / |v|, here in closed form."""
    field, z = EulerField(GaussianField()), noise()
    found = one_call(field, z, many=64, grid=4)
    one, two, four = (d.mean for d in found.distances)
    assert one > 1.5 * two > 2.25 * four > 0.1
    t, h = torch.full((len(z),), 1.0, dtype=torch.float64), 1e-5
    exact = GaussianField()
    v = exact.velocity(z, t)
    ahead = exact.velocity(exact.flow(z, t, t - h), t - h)
    slope = (v - ahead) / h
    assert found.residual[-1][0] == pytest.approx(float(slope.norm() / v.norm()), rel=1e-3)
    # Straight paths have no curvature, so one step is as good as many.
    assert one_call(EulerField(Straight()), z, many=16, grid=4).worst_residual[0] < 1e-12


class Straight(nn.Module):
    """v = (z - 1) / (1 + t): every path is a straight line with constant velocity."""

    def forward(self, z, *, t, r, cond=None):
        return (z - 1) / like(1 + t, z)


def test_distances_are_those_of_the_samples():
    field, z = EulerField(GaussianField()), noise()
    found = one_call(field, z, steps=(3,), many=16, grid=4, features=lambda x: 2 * x[:, :1])
    few, many = sample(field, z, steps=3), sample(field, z, steps=16)
    rows = (few - many).norm(dim=1) / many.norm(dim=1)
    (d,) = found.distances
    assert d.calls == 3 and d.mean == pytest.approx(float(rows.mean())) and d.worst == pytest.approx(float(rows.max()))
    assert d.features == pytest.approx(float(((few - many)[:, 0] / many[:, 0]).abs().mean()))


def test_calls_are_the_planned_ones():
    """A derivative is one call of the network that costs two."""
    net = Counting(GaussianField())
    found = one_call(net, noise(4), steps=(1, 2), many=16, grid=4)
    assert found.calls == planned_calls((1, 2), 16, 4) == net.calls + 10


def test_a_network_with_classes_is_diagnosed_in_eval_mode_and_left_as_it_was():
    net = MLP((2,), width=16, depth=1, classes=3).train()
    nn.init.normal_(net.last.weight)
    z, labels = drawn(net, 7, 5)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0] and torch.equal(drawn(net, 2, 6)[0][0], z[1])
    first, again = one_call(net, z, labels, many=4, grid=2), one_call(net, z, labels, many=4, grid=2)
    assert net.training and first == again and first.worst_residual[0] > 0
    with pytest.raises(ValueError, match="no class labels"):
        drawn(SimpleNamespace(shape=(2,), null={"text": 0}), 2, 0)


@pytest.mark.parametrize("options", [{"steps": (0,)}, {"grid": 1}, {"many": 10, "grid": 4}])
def test_what_does_not_fit_together_is_refused(options):
    with pytest.raises(ValueError, match="multiple of grid"):
        one_call(GaussianField(), noise(2), **options)


def test_the_numbers_are_json_and_a_picture_with_the_worst_cell_brightest():
    found = one_call(EulerField(GaussianField()), noise(), many=16, grid=4)
    assert json.loads(json.dumps(found.to_dict()))["residual"][4][0] == found.residual[4][0]
    value, r, t = found.worst_residual
    assert found.residual[found.times.index(t)][found.times.index(r)] == value == max(cells(found.residual))
    image = heat_map(found)
    i, j = found.times.index(t), found.times.index(r)
    corner = (LEFT + j * CELL + 2, TOP + (4 - i) * CELL + 2)
    assert image.getpixel(corner) == shade(value)
    assert image.getpixel((LEFT + 3 * CELL + 2, TOP + 3 * CELL + 2)) == (255, 255, 255)  # r > t is no jump


def test_colours_go_from_dark_to_bright_and_hold_the_ends():
    bright = [sum(shade(v)) for v in (0.01, 0.03, 0.1, 0.3, 1.0)]
    assert bright == sorted(bright)
    assert shade(0) == shade(0.01) and shade(float("inf")) == shade(float("nan")) == shade(1.0)
