"""Law 8: averages against their closed form."""

import torch
from torch import nn

from meanflow.training.ema import EMA, warm_decay


class Line(nn.Module):
    """One weight and one buffer."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=dtype))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))


def follow(decay, steps, dtype=torch.float32):
    """EMA of the weights 1, 2, ..., steps."""
    module = Line(dtype)
    ema = EMA(module, [decay])
    for step in range(1, steps + 1):
        with torch.no_grad():
            module.weight.fill_(step)
            module.count.fill_(step)
        ema.update()
    return ema.averages[decay]


def closed_form(decay, steps, warm=True):
    """sum over k of w_k (1 - d_k) prod_{j > k} d_j, started at 0."""
    total, product = 0.0, 1.0
    for k in range(steps, 0, -1):
        d = warm_decay(decay, k) if warm else decay
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
