"""Batches without end, each read in the background while the one before is in use."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice

import torch
from torch import Tensor

from ..core.conditions import Cond
from .dataset import Dataset, draw
from .errors import DataError
from .order import mix_seed, order
from .streams import Stream
from .workers import read_in_workers

Batch = tuple[Tensor, Cond]
DRAW = 2  # sets the seeds of random draws apart from the others that follow from a run's seed


def batches(
    data: Dataset,
    batch: int,
    *,
    seed: int,
    start: int = 0,
    workers: int | None = None,
    stride: int | None = None,
) -> Generator[Batch, None, None]:
    """Batches of `batch` samples in the order of `order`, from position `start` (samples seen so far) on.

    A data set that draws at random does so from (seed, position). The batches go on for ever and cross the ends of
    epochs. workers: processes that read, 0 for a thread of this one; None takes the attribute `workers` of the data, or
    0. The batches are the same whatever their number. stride: positions from one batch to the next, by default `batch`;
    a multiple of it where other processes read those between. A stream has its own order and is read by a thread. An
    error while reading is raised by the `next` that would have returned that batch. Closing the generator ends its
    thread or processes; so does leaving it to be collected.
    """
    workers = getattr(data, "workers", 0) if workers is None else workers
    if batch < 1 or start < 0 or workers < 0:
        raise DataError(
            f"batches wants batch >= 1, start >= 0 and workers >= 0, got batch={batch}, start={start}, "
            f"workers={workers}; start is the number of samples seen so far"
        )
    stride = stride or batch
    if isinstance(data, Stream):
        return _in_thread(islice(data.batches(batch, seed=seed, start=start), 0, None, stride // batch))
    read = _Read(data, batch, seed)
    if workers:
        return read_in_workers(read, count(start, stride), workers)
    return _in_thread(map(read, count(start, stride)))


def numbers(data: Dataset, *, seed: int, start: int, count: int) -> Tensor:
    """Numbers int64 [count] of the samples from a position on; of a stream, which has none, the positions."""
    if isinstance(data, Stream):
        return torch.arange(start, start + count)
    own = getattr(data, "order", None)
    drawn = {"seed": seed, "start": start, "count": count}
    return order(len(data), **drawn) if own is None else own(**drawn)


@dataclass(frozen=True)
class _Read:
    """The batch at a position; a class, so that it can be sent to other processes."""

    data: Dataset
    batch: int
    seed: int

    def __call__(self, position: int) -> Batch:
        index = numbers(self.data, seed=self.seed, start=position, count=self.batch)
        return draw(self.data, index, mix_seed(self.seed, position, DRAW))


def _in_thread(source: Iterator[Batch]) -> Generator[Batch, None, None]:
    # an executor, not a bare thread: the interpreter waits for it at exit instead of killing it inside torch
    # One torch thread for reading (the setting is local to the thread): a second team of OpenMP threads beside that
    # of the training step makes both spin, and the step takes twice as long on two cores.
    reader = ThreadPoolExecutor(
        1, thread_name_prefix="meanflow-batches", initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        ahead = reader.submit(next, source)
        while True:
            current = ahead
            ahead = reader.submit(next, source)
            yield current.result()
    finally:
        reader.shutdown(wait=True, cancel_futures=True)
