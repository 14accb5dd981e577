"""Threads for reading files."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from .errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")
DEFAULT_WORKERS = 16  # our choice: more threads than this wait for the disk or for each other
SLAB = 4096  # waiting items cost memory, and there may be millions of files


class Pool:
    """A pool of threads that starts them when first used; a copy or a pickle of it starts its own."""

    def __init__(self, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise DataError(f"workers must be 1 or more, got {workers}; leave it out for one a core")
        self.workers = workers or min(DEFAULT_WORKERS, os.cpu_count() or 1)
        self._start()

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """The results of `function` in the order of `items`; raises what the function raised."""
        # threads do not survive a fork, and an executor that lost them would wait for ever
        if self._process != os.getpid():
            self._start()
        for first in range(0, len(items), SLAB):
            yield from self._executor.map(function, items[first : first + SLAB])

    def _start(self) -> None:
        self._process = os.getpid()
        self._executor = ThreadPoolExecutor(self.workers, thread_name_prefix="meanflow-read")

    def __reduce__(self) -> tuple[type["Pool"], tuple[int]]:
        return Pool, (self.workers,)
