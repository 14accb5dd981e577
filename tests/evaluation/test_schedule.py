"""Searched times: against an exhaustive search, and where there is nothing to gain."""

from itertools import combinations

import pytest
import torch
from test_one_call import Counting, noise
from torch import nn

from meanflow.core import EulerField, like, sample
from meanflow.evaluation import search_times
from meanflow.evaluation.one_call import relative_rows
from meanflow.evaluation.schedule import most_calls, weights_hash
from meanflow.nets import MLP
from oracles import GaussianField


class Bent(nn.Module):
    """A velocity that changes near t = 0.9 only, so that equal steps are badly placed."""

    def forward(self, z, *, t, r, cond=None):
        return z * like(4 * torch.sigmoid((t - 0.9) * 60), z) + 0.5


def distance(net, z, times):
    return float(relative_rows(sample(net, z, times=times), sample(net, z, steps=64)).mean())


@pytest.mark.parametrize(("field", "steps"), [(Bent(), 2), (Bent(), 3), (GaussianField(), 2)])
def test_the_found_times_are_the_best_of_all_on_the_grid(field, steps):
    net, z = EulerField(field), noise(64)
    found = search_times(net, steps, z, grid=12)
    every = [(1.0, *(k / 12 for k in reversed(c)), 0.0) for c in combinations(range(1, 12), steps - 1)]
    best = min(every, key=lambda times: distance(net, z[:32], times))
    assert found.times == pytest.approx(best)
    assert found.distance == pytest.approx(distance(net, z[32:], best))
    assert found.distance < found.equal < found.one
    assert found.equal == pytest.approx(distance(net, z[32:], torch.linspace(1, 0, steps + 1).double()))


def test_a_better_place_gains_much_where_equal_steps_are_badly_placed():
    found = search_times(EulerField(Bent()), 4, noise(64))
    assert found.distance < 0.5 * found.equal and f"{found.equal:.4f} at equal ones" in str(found)


def test_the_exact_field_has_nothing_to_gain_and_keeps_equal_times():
    found = search_times(GaussianField(), 2, noise(8), many=8, grid=8)
    assert found.distance < 1e-14 and found.distance <= found.equal


def test_the_search_is_deterministic_and_its_calls_are_counted_and_bounded():
    net = Counting(EulerField(Bent()))
    first = search_times(net, 4, noise(8), grid=16)
    assert net.calls == first.calls <= most_calls(4, 64, 16)
    assert search_times(net, 4, noise(8), grid=16) == first


def test_conditions_follow_their_rows():
    net = MLP((2,), width=16, depth=1, classes=2)
    nn.init.normal_(net.last.weight)
    z, labels = torch.randn(8, 2), torch.arange(8) % 2
    found = search_times(net, 2, z, labels, many=8, grid=8)
    far = relative_rows(sample(net, z[4:], labels[4:], steps=1), sample(net, z[4:], labels[4:], steps=8))
    assert found.one == pytest.approx(float(far.mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("steps", "rows", "message"), [(1, 4, "one call has none"), (33, 4, "2 to 32"), (2, 1, "2 rows")]
)
def test_what_cannot_be_searched_is_refused(steps, rows, message):
    with pytest.raises(ValueError, match=message):
        search_times(GaussianField(), steps, noise(rows))


def test_the_hash_of_weights_knows_every_one_of_them():
    net = MLP((2,), width=16, depth=1)
    before = weights_hash(net)
    assert weights_hash(net) == before
    with torch.no_grad():
        net.last.bias[1] += 1e-6
    assert weights_hash(net) != before
