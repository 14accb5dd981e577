"""Laws 1 and 2: the exact mean velocity is a fixed point, and jumps compose. With mutants."""

import pytest
import torch

from meanflow.core import jump, like, predict, sample
from meanflow.core.derivative import jvp, mean_velocity_target
from oracles import SHAPES, GaussianField, draw


def target(z, t, r, *, tangent=(0.0, 1.0), sign=1.0, swap=False):
    """The target built from the exact field; the arguments are the mistakes that people make."""
    net = GaussianField().double()
    v = net.velocity(z, t)
    step = (v, torch.full_like(t, tangent[1]), torch.full_like(r, tangent[0]))
    u, dudt = jvp(net, z, t, r, None, (v, step[2], step[1]) if swap else step)
    return u, mean_velocity_target(v, sign * dudt, t, r)


@pytest.mark.parametrize("shape", SHAPES)
def test_target_of_the_exact_field_is_the_exact_field(shape):
    z, _, t, r = draw(shape)
    u, u_target = target(z, t, r)
    assert (u - u_target).abs().max() < 1e-12


@pytest.mark.parametrize(
    "mistake",
    [
        {"sign": -1.0},
        {"swap": True},
        {"tangent": (0.0, 0.0)},
        {"tangent": (1.0, 1.0)},
        {"tangent": (1.0, 0.0)},
    ],
    ids=["wrong sign", "r and t swapped", "dt/dt forgotten", "dr/dt 1", "(v,1,0)"],
)
def test_mistakes_in_the_target_are_far_off(mistake):
    z, _, t, r = draw((3, 8, 8))
    u, u_target = target(z, t, r, **mistake)
    assert (u - u_target).abs().max() > 1e-2


@pytest.mark.parametrize("shape", SHAPES)
def test_one_step_is_seven_steps_is_the_exact_map(shape):
    net = GaussianField().double()
    _, noise, _, _ = draw(shape)
    exact = net.m + net.s * noise
    for times in ([1.0, 0.0], torch.linspace(1, 0, 8), [1.0, 0.93, 0.4, 0.39, 0.0]):
        assert (sample(net, noise, times=times) - exact).abs().max() < 1e-12


def test_jumps_between_any_times_and_per_row():
    net = GaussianField().double()
    z, _, t, r = draw((4,))
    assert (jump(net, z, t=t, r=r) - net.flow(z, t, r)).abs().max() < 1e-12
    middle = (t + r) / 2
    assert (sample(net, z, times=torch.stack([t, middle, r])) - net.flow(z, t, r)).abs().max() < 1e-12


def test_sampler_with_the_wrong_sign_misses():
    net = GaussianField().double()
    _, noise, t, r = draw((4,))
    one, zero = torch.ones_like(t), torch.zeros_like(r)
    wrong = noise + like(one - zero, noise) * net(noise, t=one, r=zero)
    assert (wrong - (net.m + net.s * noise)).abs().max() > 0.1


@pytest.mark.parametrize("mode", ["exact", "no_grad", "finite_difference"])
def test_predict_leaves_out_the_rows_with_r_equal_t(mode):
    net = GaussianField().double()
    z, _, t, r = draw((3, 4, 4), n=8)
    r = torch.cat([t[:6], r[6:]])
    v = net.velocity(z, t)
    u, dudt = predict(net, z, v[6:], t=t, r=r, equal=6, mode=mode)
    assert u.shape == z.shape and dudt.shape == (2, 3, 4, 4)
    assert u.requires_grad and not dudt.requires_grad
    assert (u - net(z, t=t, r=r)).abs().max() < 1e-14
    exact = jvp(net, z[6:], t[6:], r[6:], None, (v[6:], torch.ones(2).double(), torch.zeros(2).double()))[1]
    assert (dudt - exact).abs().max() < (1e-7 if mode == "finite_difference" else 1e-14)
