"""Stopping politely: Ctrl-C and SIGTERM end the run after the present step, SIGTERM within a deadline."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType


class StopSignal:
    """Context in which SIGINT and SIGTERM are noted in `received` instead of ending the program.

    A second signal of the same kind acts as it would have without this. deadline: seconds after SIGTERM in which
    `reached` must be called; otherwise the process ends there and then with exit code 143, as whoever sent the signal
    will kill it anyway and the message would be lost.
    """

    def __init__(self, deadline: float) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}
        self._timer = threading.Timer(deadline, self._give_up)
        self._timer.daemon = True
        self._deadline = deadline

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGINT, signal.SIGTERM):
                self._before[kind] = signal.signal(kind, self._note)
        return self

    def reached(self) -> None:
        """The run has come to a point at which it saves and ends."""
        self._timer.cancel()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(number, self._before[self.received])  # type: ignore[arg-type]
        if self.received == signal.SIGTERM:
            self._timer.start()

    def _give_up(self) -> None:
        print(
            f"meanflow: error: no step ended within {self._deadline:g} s after SIGTERM, so nothing new was saved; the "
            "checkpoints are whole, and the same command goes on from the newest",
            file=sys.stderr,
            flush=True,
        )
        os._exit(128 + signal.SIGTERM)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
