"""Requests share network calls, keep their own samples, and do not wait for ever."""

import asyncio
import threading

import pytest
import torch

from meanflow.serve import Batcher, Job
from meanflow.serve.batching import BusyError

FULL = (1.0, 0.0)


class Network:
    """Samples that tell their seed and label; the first call waits until it is let go."""

    def __init__(self, wait=False):
        self.calls, self.go = [], threading.Event()
        if not wait:
            self.go.set()

    def __call__(self, seeds, labels, times, guidance):
        assert self.go.wait(10)
        self.calls.append((list(seeds), times, guidance))
        return torch.tensor([[s, -1 if labels is None else n] for s, n in zip(seeds, labels or seeds, strict=True)])


def working(body, network, **options):
    """Run a coroutine with a batcher that has begun, and stop it."""

    async def main():
        batcher = Batcher(network, **options)
        batcher.start()
        try:
            return await body(batcher)
        finally:
            await batcher.stop()

    return asyncio.run(main())


def held(jobs, network, **options):
    """Results of jobs of which the first is being answered while the others arrive."""

    async def body(batcher):
        tasks = [asyncio.create_task(batcher.submit(jobs[0]))]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(batcher.submit(job)) for job in jobs[1:]]
        await asyncio.sleep(0.05)
        network.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    return working(body, network, **options)


def test_what_arrives_during_a_call_shares_the_next_and_everybody_gets_their_own():
    network = Network(wait=True)
    jobs = [Job((10 * i, 10 * i + 1), (i, i), FULL) for i in range(6)]
    results = held(jobs, network)
    for i, x in enumerate(results):
        assert x.tolist() == [[10 * i, i], [10 * i + 1, i]]
    assert [len(seeds) for seeds, *_ in network.calls] == [2, 10]


def test_without_batching_each_has_calls_of_its_own():
    network = Network(wait=True)
    held([Job((i,), None, FULL) for i in range(4)], network, batching=False)
    assert [seeds for seeds, *_ in network.calls] == [[0], [1], [2], [3]]


def test_calls_are_shared_by_equal_times_and_guidance_only():
    network = Network(wait=True)
    two = (1.0, 0.5, 0.0)
    how = [(FULL, None), (FULL, None), (two, None), (FULL, 2.0), (two, None)]
    jobs = [Job((i,), (0,), times, guidance) for i, (times, guidance) in enumerate(how)]
    held(jobs, network)
    assert network.calls == [([0], FULL, None), ([1], FULL, None), ([2, 4], two, None), ([3], FULL, 2.0)]


def test_calls_have_at_most_so_many_rows():
    network, sizes = Network(wait=True), []
    jobs = [
        Job((0,), None, FULL),
        Job(tuple(range(7)), None, FULL),
        Job((20, 21), None, FULL),
        Job((30, 31), None, FULL),
    ]
    results = held(jobs, network, rows=4, observe=sizes.append)
    assert sizes == [len(seeds) for seeds, *_ in network.calls] == [1, 4, 3, 4]
    assert [x[:, 0].tolist() for x in results] == [list(job.seeds) for job in jobs]


def test_too_many_waiting_are_turned_away_and_the_others_served():
    network = Network(wait=True)
    results = held([Job((i, i), None, FULL) for i in range(5)], network, waiting=4)
    told = [str(x) for x in results if isinstance(x, Exception)]
    assert told == ["4 samples wait already and at most 4 may; try again later"] * 2
    assert sum(torch.is_tensor(x) for x in results) == 3


def test_a_failing_call_fails_its_requests_and_no_later_ones():
    def draw(seeds, labels, times, guidance):
        if 13 in seeds:
            raise RuntimeError("out of memory")
        return torch.zeros(len(seeds), 1)

    async def body(batcher):
        with pytest.raises(RuntimeError, match="out of memory"):
            await batcher.submit(Job((13,), None, FULL))
        return await batcher.submit(Job((1,), None, FULL)), batcher.alive

    x, alive = working(body, draw)
    assert len(x) == 1 and alive


def test_what_was_given_up_is_not_computed():
    network = Network(wait=True)

    async def body(batcher):
        first = asyncio.create_task(batcher.submit(Job((0,), None, FULL)))
        await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.submit(Job((1,), None, FULL)), 0.05)
        network.go.set()
        await first
        return await batcher.submit(Job((2,), None, FULL))

    working(body, network)
    assert [seeds for seeds, *_ in network.calls] == [[0], [2]]


def test_stopping_tells_those_who_wait():
    network = Network(wait=True)

    async def body(batcher):
        tasks = [asyncio.create_task(batcher.submit(Job((i,), None, (1.0, i / 10, 0.0)))) for i in range(1, 4)]
        await asyncio.sleep(0.05)
        stopping = asyncio.create_task(batcher.stop())
        await asyncio.sleep(0.05)
        network.go.set()
        await stopping
        return await asyncio.gather(*tasks[1:], return_exceptions=True)

    assert [str(x) for x in working(body, network)] == ["the service is stopping"] * 2


def test_a_request_in_the_running_call_is_answered_when_the_service_stops():
    network = Network(wait=True)

    async def main():
        batcher = Batcher(network, rows=8, waiting=8)
        batcher.start()
        task = asyncio.create_task(batcher.submit(Job((1,), None, FULL, None)))
        await asyncio.sleep(0.05)
        asyncio.get_running_loop().call_later(0.05, network.go.set)
        await batcher.stop()
        with pytest.raises(BusyError, match="stopping"):
            await asyncio.wait_for(task, 5)

    asyncio.run(main())
