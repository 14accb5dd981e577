"""Samplers: schedules, seeds, guidance at sampling, and what they refuse."""

import pytest
import torch
from torch import nn

from meanflow import EulerField, Guidance, noise_from_seeds, sample
from meanflow.nets import MLP, DiT
from oracles import GaussianField


def test_euler_field_takes_small_steps_to_the_exact_map():
    net = GaussianField().double()
    noise = torch.randn(32, 3, dtype=torch.float64)
    exact = net.m + net.s * noise
    errors = [float((sample(EulerField(net), noise, steps=n) - exact).abs().max()) for n in (50, 100)]
    assert errors[1] < 0.03 and 1.7 < errors[0] / errors[1] < 2.3


def test_one_seed_is_one_sample_whatever_the_batch():
    net = DiT((1, 8, 8), patch=4, width=32, depth=1, heads=4, classes=3)
    nn.init.normal_(net.final.weight)
    together = sample(net, noise_from_seeds([3, 4, 5], (1, 8, 8)), torch.tensor([0, 1, 2]))
    alone = sample(net, noise_from_seeds([4], (1, 8, 8)), torch.tensor([1]))
    assert torch.equal(noise_from_seeds([3, 4], (2,))[1], noise_from_seeds([4], (2,))[0])
    assert torch.allclose(together[1], alone[0], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_sampling_is_without_dropout_and_leaves_the_mode():
    net = nn.Sequential()
    net = MLP((4,), width=32, depth=1)
    net.blocks[0].down = nn.Sequential(net.blocks[0].down, nn.Dropout(0.5))
    noise = torch.randn(4, 4)
    assert torch.equal(sample(net, noise), sample(net, noise)) and net.training
    assert not sample(net, noise).requires_grad


def test_guidance_at_sampling_is_the_combination_of_two_fields():
    net = MLP((4,), width=32, depth=1, classes=3)
    noise, labels = torch.randn(4, 4), torch.tensor([0, 1, 2, 0])
    null = torch.full((4,), 3)
    plain, none = sample(net, noise, labels), sample(net, noise, null)
    assert torch.allclose(sample(net, noise, labels, guidance=2.5), 2.5 * plain - 1.5 * none, atol=1e-5)
    assert torch.equal(sample(net, noise, labels, guidance=1.0), plain)


def test_guiding_twice_is_refused():
    net = MLP((4,), width=32, depth=1, classes=3)
    net.guidance = Guidance(scale=2.0)
    with pytest.raises(ValueError, match=r"effective scale 2 .*guide twice"):
        sample(net, torch.randn(2, 4), torch.tensor([0, 1]), guidance=4.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least 1, got 0"),
        ({"times": [0.0, 1.0]}, "must decrease"),
        ({"times": [1.0, 0.5, 0.5, 0.0]}, "must decrease"),
        ({"times": [1.5, 0.0]}, r"\[0, 1\]"),
        ({"times": [1.0]}, r"n \+ 1"),
        ({"times": torch.ones(2, 3)}, r"\[n \+ 1, 4\]"),
        ({"times": [1.0, 0.0], "steps": 1}, "not both"),
    ],
)
def test_bad_schedules_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        sample(MLP((2,)), torch.randn(4, 2), **options)


def test_noise_of_a_wrong_kind_is_explained():
    with pytest.raises(ValueError, match=r"127\.5"):
        sample(MLP((2,)), torch.zeros(4, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="at least one seed"):
        noise_from_seeds([], (2,))
