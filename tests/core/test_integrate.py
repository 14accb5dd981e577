"""The sampler inside a loss: gradients in noise, condition and weights."""

import pytest
import torch
from torch import nn

from meanflow import integrate, sample
from meanflow.nets import DiT
from meanflow.training.blocks import recomputing

TIMES = torch.tensor([1.0, 0.6, 0.0], dtype=torch.float64)


def net_of():
    net = DiT((1, 4, 4), patch=2, width=16, depth=2, heads=2, condition_features=3).double()
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return net


def score(net, noise, cond, times=TIMES):
    """A user's loss over samples."""
    return integrate(net, noise, cond, times=times).pow(3).sum()


def gradients(net, noise, cond):
    noise, cond = noise.clone().requires_grad_(), cond.clone().requires_grad_()
    return torch.autograd.grad(score(net, noise, cond), [noise, cond, *net.parameters()])


def given():
    return torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)


def slope(function, at, direction, width=1e-5):
    """Central difference along a direction."""
    return float((function(at + width * direction) - function(at - width * direction)) / (2 * width))


@torch.no_grad()
def test_gradients_are_finite_differences():
    net, (noise, cond) = net_of(), given()
    with torch.enable_grad():
        d_noise, d_cond, *d_weights = gradients(net, noise, cond)
    for function, at, found in (
        (lambda e: score(net, e, cond), noise, d_noise),
        (lambda c: score(net, noise, c), cond, d_cond),
    ):
        direction = torch.randn_like(at)
        assert slope(function, at, direction) == pytest.approx(float((found * direction).sum()), rel=1e-7)
    for p, found in list(zip(net.parameters(), d_weights, strict=True))[::5]:
        before, direction = p.clone(), torch.randn_like(p)

        def of(value, p=p):
            p.copy_(value)
            return score(net, noise, cond)

        measured = slope(of, before, direction)
        p.copy_(before)
        assert measured == pytest.approx(float((found * direction).sum()), rel=1e-6, abs=1e-9)


def test_a_detached_step_is_noticed():
    """The mutant: a sampler without a graph between its steps misses what the first call contributes."""
    net, (noise, cond) = net_of(), given()
    exact = gradients(net, noise, cond)[1]
    c = cond.clone().requires_grad_()
    half = integrate(net, noise, c, times=TIMES[:2]).detach()
    cut = torch.autograd.grad(score(net, half, c, TIMES[1:]), c)[0]
    assert float((exact - cut).norm() / exact.norm()) > 0.01


def test_activation_checkpointing_gives_the_same_gradients():
    net, (noise, cond) = net_of(), given()
    plain = gradients(net, noise, cond)
    with recomputing(net):
        lean = gradients(net, noise, cond)
    assert all(float((a - b).abs().max()) < 1e-12 for a, b in zip(plain, lean, strict=True))


def test_a_compiled_network_gives_the_same_gradients():
    net, (noise, cond) = net_of(), given()
    plain = gradients(net, noise, cond)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    found = gradients(compiled, noise, cond)
    assert all(float((a - b).abs().max()) < 1e-10 for a, b in zip(plain, found, strict=True))


def test_sample_has_no_graph_and_integrate_the_same_values():
    net, (noise, cond) = net_of(), given()
    drawn = sample(net, noise, cond, times=TIMES)
    assert not drawn.requires_grad and torch.equal(drawn, integrate(net, noise, cond, times=TIMES))


def test_a_loss_over_samples_moves_a_condition():
    """What it is for: find the condition whose samples have a wanted mean."""
    net, (noise, cond) = net_of().requires_grad_(False), given()
    wanted = integrate(net, noise, cond, times=TIMES)
    guess = nn.Parameter(torch.zeros_like(cond))
    optimizer = torch.optim.LBFGS([guess], max_iter=60)

    def closure():
        optimizer.zero_grad()
        error = (integrate(net, noise, guess, times=TIMES) - wanted).square().sum()
        error.backward()
        return error

    first = float(closure())
    optimizer.step(closure)
    assert float(closure()) < 1e-3 * first
