"""The cost of a recipe by counting: equal to that of real steps, and to what the mathematics asks."""

from dataclasses import replace

import pytest
import torch

from meanflow import Guidance, Times
from meanflow.bench import flops, peak_bytes
from meanflow.core.times import Pairs
from meanflow.data import Tensors
from meanflow.recipes import NetSettings, ObjectiveSettings, Recipe, build, cost, gpu_hours, recipe
from meanflow.recipes.cost import ROWS, _counted, _Samples, _what_costs
from meanflow.training import Training

GUIDED = Guidance(scale=2.0, mix=0.5)
NONE = Guidance(drop=0.0)


def small(guidance=NONE, precision="fp32", **net):
    objective = ObjectiveSettings(guidance=guidance, precision=precision)
    return Recipe(NetSettings(**{"patch": 2, "width": 64, "depth": 3, "heads": 4, **net}), objective)


def real_step(found, rows):
    """The same step on real tensors."""
    data = Tensors(torch.zeros(rows, 1, 8, 8), torch.arange(rows) % 10)
    objective = build(found, data)
    x, labels = data.batch(range(rows))
    t = torch.rand(rows)
    pairs = Pairs(t, t, round(rows * 0.75))
    guided = objective.guidance is not None
    dropped = torch.arange(rows) < rows // 10 if guided else None

    def work():
        objective.zero_grad(set_to_none=True)
        objective._run(x, labels, torch.randn_like(x), pairs, dropped, rows // 10 if guided else 0).loss.backward()

    return work


@pytest.mark.parametrize("guidance", [NONE, GUIDED])
def test_what_is_counted_is_what_a_real_step_does(guidance):
    found = small(guidance, depth=2)
    price = cost(found, (1, 8, 8), 10)
    few, many = real_step(found, ROWS), real_step(found, 2 * ROWS)
    assert price.step == pytest.approx(flops(few) / ROWS, rel=1e-12)
    assert price.activations == pytest.approx((peak_bytes(many) - peak_bytes(few)) / ROWS, rel=0.05)


def test_more_rows_with_r_below_t_cost_more():
    """The mutant of the share of rows: all of them, 4 forward passes instead of 3.25."""
    found = small()
    late = replace(found, objective=replace(found.objective, times=replace(found.objective.times, share_equal=0.0)))
    assert cost(late, (1, 8, 8), 10).step > 1.2 * cost(found, (1, 8, 8), 10).step


def test_blocks_counted_once_are_as_good_as_all_of_them():
    found = small(GUIDED, depth=2)
    once, all_of_them = (
        cost(found, (1, 8, 8), 10),
        _counted(found.net, _what_costs(found.objective), _Samples((1, 8, 8), 10)),
    )
    assert once.parameters == all_of_them.parameters
    assert once.forward == all_of_them.forward
    assert once.step == pytest.approx(all_of_them.step, rel=1e-12)
    assert once.activations == pytest.approx(all_of_them.activations, rel=0.01)


@pytest.mark.parametrize(
    ("variant", "passes"),
    [
        # Forward passes: 3, one more for the tangents of the rows with r < t, guidance calls on the rows with label.
        ("paper", 3 + 0.25),
        ("code", 3 + 0.25 + 0.9 + 0.9 * 0.25),
    ],
)
def test_steps_cost_what_the_mathematics_asks(variant, passes):
    """B/4: the paper's is unguided, the code's has w = 1 and k = 0.5."""
    price = cost(recipe("imagenet-b4", variant), (4, 32, 32), 1000)
    assert passes / 3 <= price.ratio <= 1.015 * passes / 3


def test_bf16_stores_less_and_computes_the_same():
    full, half = (cost(small(precision=p), (1, 8, 8), 10) for p in ("fp32", "bf16"))
    assert half.step == full.step and 0.5 < half.activations / full.activations < 0.8


def test_counting_draws_nothing_and_needs_no_labels():
    state = torch.get_rng_state()
    assert cost(small(), (1, 8, 8), None).step > 0
    assert torch.equal(state, torch.get_rng_state())


def test_flow_matching_is_three_forward_passes():
    found = small()
    flow = replace(found, objective=replace(found.objective, kind="flow-matching"))
    assert cost(flow, (1, 8, 8), 10).ratio == pytest.approx(1, abs=0.01)
    equal = replace(found, objective=replace(found.objective, times=replace(found.objective.times, share_equal=1.0)))
    assert cost(equal, (1, 8, 8), 10).step == pytest.approx(cost(flow, (1, 8, 8), 10).step, rel=1e-12)


def test_hours_and_bytes_follow_from_the_counts():
    training = Training(images=100, batch=10, ema=(0.9, 0.99))
    price = cost(small(), (1, 8, 8), 10)
    assert price.states(training) == 4 * price.parameters * 6  # weights, gradients, two moments, two averages
    assert price.memory(training) == price.states(training) + 10 * price.activations
    quarter = price.memory(replace(training, accumulate=2), gpus=2) - price.states(training)
    assert quarter == pytest.approx(2.5 * price.activations)
    assert price.flops(training) == price.step * 100
    estimate = gpu_hours(price, training)
    assert estimate.high == 2 * estimate.low == pytest.approx(price.step * 100 / (0.2 * 989e12) / 3600)
    # A step of the authors' CIFAR code takes 5 forward passes: at their rate, ours takes its share of their time.
    own = gpu_hours(price, training, authors_step=1.68)
    assert own.low == own.high == pytest.approx(10 * 1.68 / 3600 * price.step / (5 * price.forward))
    assert str(gpu_hours(price, replace(training, images=10**15))).startswith("about ")


def test_times_of_the_count_are_those_of_the_recipe():
    assert Times.authors_jax().share_equal * ROWS % 1 == 0 == Times.cifar_v0().share_equal * ROWS % 1
