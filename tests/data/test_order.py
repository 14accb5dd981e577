import pytest
import torch

from meanflow.data import DataError, mix_seed, order


@pytest.mark.parametrize("length", [1, 2, 7, 100])
def test_every_epoch_is_a_permutation(length):
    stream = order(length, seed=3, start=0, count=5 * length)
    for epoch in stream.split(length):
        assert torch.equal(epoch.sort().values, torch.arange(length))


@pytest.mark.parametrize("start", [0, 1, 9, 10, 11, 25, 1003])
def test_the_stream_from_a_position_is_a_slice_of_the_stream_from_0(start):
    whole = order(10, seed=7, start=0, count=start + 37)
    assert torch.equal(order(10, seed=7, start=start, count=37), whole[start:])


def test_epochs_and_seeds_differ():
    first, second = order(100, seed=0, start=0, count=200).split(100)
    assert not torch.equal(first, second)
    assert not torch.equal(first, order(100, seed=1, start=0, count=100))
    # epoch 1 of seed 0 must not be epoch 0 of seed 1, as it would be with seed + epoch
    assert not torch.equal(second, order(100, seed=1, start=0, count=100))


def test_changing_the_answer_does_not_change_the_stream():
    order(10, seed=5, start=0, count=4).zero_()
    assert torch.equal(order(10, seed=5, start=0, count=10).sort().values, torch.arange(10))


def test_order_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    order(10, seed=5, start=0, count=40)
    assert torch.equal(torch.rand(3), expected)


def test_nothing_wanted_is_nothing():
    assert order(10, seed=0, start=3, count=0).tolist() == []
    assert order(10, seed=0, start=3, count=0).dtype == torch.int64


@pytest.mark.parametrize("wrong", [{"length": 0}, {"start": -1}, {"count": -5}])
def test_impossible_positions_are_refused(wrong):
    arguments = {"length": 10, "start": 0, "count": 1} | wrong
    with pytest.raises(DataError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        order(arguments["length"], seed=0, start=arguments["start"], count=arguments["count"])


def test_mix_seed_is_63_bit_and_tells_parts_and_their_order_apart():
    parts = [(), (0,), (0, 0), (0, 1), (1, 0), (-1,), (2**63,)]
    seeds = [mix_seed(*part) for part in parts]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_splitmix64_is_the_published_one():
    from meanflow.data.order import _splitmix64

    # first output of the reference C code (prng.di.unimi.it/splitmix64.c) seeded with 1234567
    assert _splitmix64(1234567) == 6457827717110365317


def test_neighbouring_seeds_share_no_bits():
    flips = [(mix_seed(k, 5) ^ mix_seed(k + 1, 5)).bit_count() for k in range(1000)]
    assert 31 < sum(flips) / 1000 < 32
