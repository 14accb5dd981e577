"""Requests that wait together go through the network together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

Draw = Callable[[Sequence[int], Sequence[int] | None, Sequence[float], float | None], Tensor]


class BusyError(RuntimeError):
    """More samples wait than the service allows."""


@dataclass(frozen=True)
class Job:
    """The samples of one request."""

    seeds: tuple[int, ...]
    labels: tuple[int, ...] | None
    times: tuple[float, ...]
    guidance: float | None = None

    @property
    def key(self) -> tuple[tuple[float, ...], float | None]:
        """Jobs with equal keys can share network calls."""
        return self.times, self.guidance


@dataclass
class _Waiting:
    job: Job
    result: asyncio.Future[Tensor] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """Collects what arrives while the network is busy, and gives it to the network as one batch.

    Nobody waits for a batch to fill: an idle network takes a request at once, so a lone client loses nothing.
    rows: samples in a network call. waiting: samples that may wait before `submit` raises BusyError. batching:
    False gives every request network calls of its own. observe: told the samples of each call.
    """

    def __init__(
        self,
        draw: Draw,
        *,
        rows: int = 64,
        waiting: int = 1024,
        batching: bool = True,
        observe: Callable[[int], object] = lambda rows: None,
    ) -> None:
        self._draw, self._rows, self._limit, self._batching, self._observe = draw, rows, waiting, batching, observe
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        # One thread: two network calls at a time would only share the same cores.
        self._thread = ThreadPoolExecutor(1, "network")
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Samples that wait for the network."""
        return sum(len(w.job.seeds) for w in self._queue)

    @property
    def alive(self) -> bool:
        """Whether requests are being worked through."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begin to work; call it inside the event loop."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """End after the present network call; what still waits fails with BusyError."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        _fail(self._queue, BusyError("the service is stopping"))
        self._queue.clear()
        await asyncio.to_thread(self._thread.shutdown)

    async def submit(self, job: Job) -> Tensor:
        """The samples of a job [B, *shape]; raises BusyError where too many wait already."""
        if self.waiting + len(job.seeds) > self._limit and self._queue:
            raise BusyError(f"{self.waiting} samples wait already and at most {self._limit} may; try again later")
        waiting = _Waiting(job)
        self._queue.append(waiting)
        self._arrived.set()
        return await waiting.result

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            batch = self._take()
            if batch:
                await self._serve(batch)
            if not self._queue:
                self._arrived.clear()

    def _take(self) -> list[_Waiting]:
        """The oldest request and, in their order, those that can share its calls; given-up ones are dropped."""
        self._queue = deque(w for w in self._queue if not w.result.done())
        taken: list[_Waiting] = []
        room = self._rows
        for w in list(self._queue) if self._batching else list(self._queue)[:1]:
            if taken and (w.job.key != taken[0].job.key or len(w.job.seeds) > room):
                continue
            taken.append(w)
            room -= len(w.job.seeds)
            self._queue.remove(w)
        return taken

    async def _serve(self, batch: list[_Waiting]) -> None:
        try:
            parts = await asyncio.get_running_loop().run_in_executor(self._thread, self._calls, [w.job for w in batch])
        except asyncio.CancelledError:
            _fail(batch, BusyError("the service is stopping"))
            raise
        except Exception as error:  # the requests fail with it, the service goes on
            return _fail(batch, error)
        for w, part in zip(batch, parts, strict=True):
            if not w.result.done():  # the client may have given up meanwhile
                w.result.set_result(part)

    def _calls(self, jobs: list[Job]) -> list[Tensor]:
        """The samples of jobs that share a key, in network calls of at most so many rows."""
        first = jobs[0]
        seeds = [s for job in jobs for s in job.seeds]
        labels = None if first.labels is None else [n for job in jobs for n in job.labels or ()]
        parts = []
        for start in range(0, len(seeds), self._rows):
            rows = slice(start, start + self._rows)
            parts.append(self._draw(seeds[rows], labels and labels[rows], first.times, first.guidance))
            self._observe(len(parts[-1]))
        return list(torch.cat(parts).split([len(job.seeds) for job in jobs]))


def _fail(batch: Iterable[_Waiting], error: Exception) -> None:
    for w in batch:
        if not w.result.done():
            w.result.set_exception(error)
