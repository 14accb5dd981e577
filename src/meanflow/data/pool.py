"""Threads for reading files."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from torch.utils.data import get_worker_info

from .errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")
DEFAULT_THREADS = 16  # our choice: more threads than this wait for the disk or for each other
PORTION = 16  # our choice: handing over a portion costs about as much as decoding the smallest image
SLAB = 256  # portions under way at once: results cost memory, and there may be millions


class Pool:
    """A pool of threads that starts them when first used; a copy or a pickle of it starts its own."""

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise DataError(f"threads must be 1 or more, got {threads}; leave it out for one a core")
        self.threads = threads or min(DEFAULT_THREADS, os.cpu_count() or 1)
        self._start()

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """The results of `function` in the order of `items`; raises what the function raised."""
        # beside other processes that read, more threads only get into their way
        if self.threads == 1 or get_worker_info() is not None:
            yield from map(function, items)
            return
        # threads do not survive a fork, and an executor that lost them would wait for ever
        if self._process != os.getpid():
            self._start()
        size = max(1, min(PORTION, -(-len(items) // self.threads)))

        def results(first: int) -> list[Result]:
            return [function(item) for item in items[first : first + size]]

        for first in range(0, len(items), SLAB * size):
            portions = range(first, min(len(items), first + SLAB * size), size)
            for done in self._executor.map(results, portions):
                yield from done

    def _start(self) -> None:
        self._process = os.getpid()
        self._executor = ThreadPoolExecutor(self.threads, thread_name_prefix="meanflow-read")

    def __reduce__(self) -> tuple[type["Pool"], tuple[int]]:
        return Pool, (self.threads,)
