"""Time samplers: distributions, order, shares, and the three published post-processings."""

import pytest
import torch

from meanflow import LogitNormal, Times, Uniform

SAMPLERS = {
    "jax": Times.authors_jax(),
    "v0": Times.cifar_v0(),
    "v1": Times.cifar_v1(),
    "uniform": Times(Uniform(0.2, 0.9), share_equal=0.5),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_pairs_are_ordered_and_in_range(name):
    t, r, _ = SAMPLERS[name].draw(10_000, torch.Generator().manual_seed(0))
    assert t.shape == r.shape == (10_000,)
    assert bool(((r >= 0) & (r <= t) & (t <= 1)).all())


def test_first_rows_have_r_equal_t_and_the_count_is_known():
    t, r, equal = Times(share_equal=0.75).draw(13, torch.Generator().manual_seed(0))
    assert equal == 9
    assert torch.equal(t[:9], r[:9]) and bool((r[9:] < t[9:]).all())


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_coin_reaches_its_share(share):
    t, r, equal = Times(share_equal=share, pick="coin").draw(40_000, torch.Generator().manual_seed(1))
    assert equal is None
    assert abs(float((t == r).float().mean()) - share) < 0.01


def test_clip_keeps_the_draws_apart():
    """CIFAR v1: t keeps its own distribution, and about as many rows as lie above it are clipped to r = t."""
    times = Times.cifar_v1()
    t, _, _ = times.draw(200_000, torch.Generator().manual_seed(0))
    logit = torch.logit(t.double())
    assert abs(float(logit.mean()) - -0.6) < 0.02 and abs(float(logit.std()) - 1.6) < 0.02


def test_sorting_moves_t_up():
    t, _, _ = Times(LogitNormal(-2.0, 2.0), share_equal=0.0).draw(200_000, torch.Generator().manual_seed(0))
    # The larger of two N(-2, 2^2) draws has mean -2 + 2 / sqrt(pi).
    assert abs(float(torch.logit(t.double()).mean()) - (-2 + 2 / torch.pi**0.5)) < 0.02


def test_a_generator_decides_everything():
    draws = [Times.cifar_v1().draw(64, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(draws[0].t, draws[1].t) and torch.equal(draws[0].r, draws[1].r)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Times(share_equal=75), "0.75"),
        (lambda: Times(pick="last"), "first"),
        (lambda: Times(order="up"), "sort"),
        (lambda: Uniform(0.5, 0.5), "low < high"),
        (lambda: LogitNormal(std=0), "std > 0"),
    ],
)
def test_bad_settings_say_what_is_wanted(make, message):
    with pytest.raises(ValueError, match=message):
        make()
