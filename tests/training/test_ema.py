"""Law 8: averages against their closed form."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import meanflow as mf
from meanflow.training.ema import EMA, warm_decay


class Line(nn.Module):
    """One weight and one buffer."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=dtype))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))


def follow(decay, steps, dtype=torch.float32, **options):
    """EMA of the weights 1, 2, ..., steps."""
    module = Line(dtype)
    ema = EMA(module, [decay], **options)
    for step in range(1, steps + 1):
        with torch.no_grad():
            module.weight.fill_(step)
            module.count.fill_(step)
        ema.update()
    return ema.averages[decay]


def closed_form(decay, steps, warm=True, every=1, power=None):
    """sum over k of w_k (1 - d_k) prod_{j > k} d_j, started at 0; k goes over the multiples of `every`."""
    total, product = 0.0, 1.0
    for k in range(steps - steps % every, 0, -every):
        d = (warm_decay(decay, k) if warm else decay) ** (power or every)
        total += k * (1 - d) * product
        product *= d
    return total


def test_average_is_the_closed_form():
    for decay in (0.5, 0.99, 0.9999):
        assert abs(float(follow(decay, 300)["weight"]) - closed_form(decay, 300)) < 300 * 1e-5


def test_an_average_without_warm_up_is_noticed():
    assert abs(float(follow(0.9999, 300)["weight"]) - closed_form(0.9999, 300, warm=False)) > 100


def test_warm_up_follows_the_weights_early_and_ends_at_the_decay():
    assert warm_decay(0.9999, 1) < 0.2 and warm_decay(0.9999, 10**6) == 0.9999


def test_buffers_are_copied_and_averages_are_float32():
    average = follow(0.9999, 50, torch.bfloat16)
    assert average["count"] == 50 and average["weight"].dtype == torch.float32
    # In bfloat16 the average would stand still as soon as its steps fall below the rounding.
    assert abs(float(average["weight"]) - closed_form(0.9999, 50)) < 0.3


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("decay", [0.99, 0.9996])
def test_averages_that_move_every_16_steps_take_the_decay_to_that_power(warm, decay):
    """As in the authors' CIFAR code: 310 steps are 19 updates, the last one at step 304."""
    found = float(follow(decay, 310, every=16, warm=warm)["weight"])
    assert abs(found - closed_form(decay, 310, warm, every=16)) < 310 * 1e-5
    # The mutant: the plain decay at every 16th step.
    assert abs(found - closed_form(decay, 310, warm, every=16, power=1)) > 1


def test_full_decay_from_the_first_step_keeps_the_initial_weights():
    """Source: the authors' code starts its averages at the initial weights, here 0."""
    assert abs(float(follow(0.9999, 300, warm=False)["weight"]) - closed_form(0.9999, 300, warm=False)) < 1e-3
    assert float(follow(0.9999, 300, warm=False)["weight"]) < 5 < 200 < float(follow(0.9999, 300)["weight"])


@pytest.mark.parametrize("start", ["warm", "full"])
def test_a_resumed_run_moves_its_averages_on_the_same_steps(start, tmp_path):
    """Saved after 4 steps, between two updates: 3 and 6."""
    options = {"batch": 8, "ema": (0.9,), "ema_every": 3, "ema_start": start, "device": "cpu"}
    x = torch.randn(64, 2)

    def train(out, *lengths):
        torch.manual_seed(0)
        objective = mf.MeanFlow(mf.nets.MLP((2,), width=16, depth=1))
        for images in lengths:
            mf.fit(objective, x, out=out, images=images, **options)
        return load_file(sorted((out / "checkpoints").iterdir())[-1] / "ema-0.9.safetensors")

    whole, resumed = train(tmp_path / "whole", 64), train(tmp_path / "resumed", 32, 64)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    short = train(tmp_path / "short", 56)
    # Seven steps end with the average of step 6, and so do eight: it does not move in between.
    assert all(torch.equal(whole[name], short[name]) for name in whole)
