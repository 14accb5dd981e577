"""Batches without end, each read in the background while the one before is in use."""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ..core.conditions import Cond
from .dataset import Dataset
from .errors import DataError
from .order import order

Batch = tuple[Tensor, Cond]


def batches(
    data: Dataset, batch: int, *, seed: int, start: int = 0, stride: int | None = None
) -> Generator[Batch, None, None]:
    """Batches of `batch` samples in the order of `order`, from position `start` (samples seen so far) on.

    stride: positions from one batch to the next, by default `batch`; more where other processes read those between.

    They go on for ever and cross the ends of epochs. An error while reading is raised by the `next` that
    would have returned that batch. Closing the generator ends its thread; so does leaving it to be collected.
    """
    if batch < 1 or start < 0:
        raise DataError(
            f"batches wants batch >= 1 and start >= 0, got batch={batch}, start={start}; "
            f"start is the number of samples seen so far"
        )
    return _read_ahead(data, batch, seed, start, stride or batch)


def _read_ahead(data: Dataset, batch: int, seed: int, start: int, stride: int) -> Generator[Batch, None, None]:
    def read(position: int) -> Batch:
        return data.batch(order(len(data), seed=seed, start=position, count=batch))

    # an executor, not a bare thread: the interpreter waits for it at exit instead of killing it inside torch
    # One torch thread for reading (the setting is local to the thread): a second team of OpenMP threads beside that
    # of the training step makes both spin, and the step takes twice as long on two cores.
    reader = ThreadPoolExecutor(
        1, thread_name_prefix="meanflow-batches", initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        ahead = reader.submit(read, start)
        while True:
            current, start = ahead, start + stride
            ahead = reader.submit(read, start)
            yield current.result()
    finally:
        reader.shutdown(wait=True, cancel_futures=True)
