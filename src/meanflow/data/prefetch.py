"""Batches without end, each read in the background while the one before is in use."""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ..core.conditions import Cond
from .dataset import Dataset, draw
from .errors import DataError
from .order import mix_seed, order

Batch = tuple[Tensor, Cond]
DRAW = 2  # sets the seeds of random draws apart from the others that follow from a run's seed


def batches(data: Dataset, batch: int, *, seed: int, start: int = 0) -> Generator[Batch, None, None]:
    """Batches of `batch` samples in the order of `order`, from position `start` (samples seen so far) on.

    A data set that draws at random does so from (seed, position). The batches go on for ever and cross the ends of
    epochs. An error while reading is raised by the `next` that would have returned that batch. Closing the generator
    ends its thread; so does leaving it to be collected.
    """
    if batch < 1 or start < 0:
        raise DataError(
            f"batches wants batch >= 1 and start >= 0, got batch={batch}, start={start}; "
            f"start is the number of samples seen so far"
        )
    return _read_ahead(data, batch, seed, start)


def _read_ahead(data: Dataset, batch: int, seed: int, start: int) -> Generator[Batch, None, None]:
    def read(position: int) -> Batch:
        index = order(len(data), seed=seed, start=position, count=batch)
        return draw(data, index, mix_seed(seed, position, DRAW))

    # an executor, not a bare thread: the interpreter waits for it at exit instead of killing it inside torch
    # One torch thread for reading (the setting is local to the thread): a second team of OpenMP threads beside that
    # of the training step makes both spin, and the step takes twice as long on two cores.
    reader = ThreadPoolExecutor(
        1, thread_name_prefix="meanflow-batches", initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        ahead = reader.submit(read, start)
        while True:
            current, start = ahead, start + batch
            ahead = reader.submit(read, start)
            yield current.result()
    finally:
        reader.shutdown(wait=True, cancel_futures=True)
