"""Saving in the background: training waits for a copy in memory, a thread writes it to disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Saver:
    """Writes one checkpoint at a time in a thread; what went wrong there is raised by the next call of any method."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="meanflow-save")
        self._writing: Future[object] | None = None

    def submit(self, write: Callable[[], object]) -> None:
        """Start writing, after the one before has ended: never two at once, and the one before is whole by then."""
        self.wait()
        self._writing = self._pool.submit(write)

    def check(self) -> None:
        """Raise the error of a writing that has failed; does not wait."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being written; raises the error of a writing that has failed, once."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Let the present writing end, whatever comes of it."""
        self._pool.shutdown(wait=True)
