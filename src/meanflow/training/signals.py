"""Stopping politely: Ctrl-C, SIGTERM and a closed terminal end the run after the present step, SIGTERM in time."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType


class StopSignal:
    """Context in which SIGINT, SIGTERM and SIGHUP are noted in `received` instead of ending the program.

    A second signal of the same kind acts as it would have without this. One that is ignored (nohup ignores SIGHUP)
    stays ignored. deadline: seconds after SIGTERM in which the
    run must come to save, and again after that to leave the context; otherwise the process ends there and then with
    exit code 143, as whoever sent the signal will kill it anyway, and without a word.
    """

    def __init__(self, deadline: float) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}
        self._saving = False
        self._deadline, self._timer = deadline, threading.Timer(deadline, self._give_up, [""])

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(kind) not in (signal.SIG_IGN, None):
                    self._before[kind] = signal.signal(kind, self._note)
        return self

    def saving(self) -> None:
        """The run has come to save, which may take its time: half a checkpoint would be worth nothing."""
        self._saving = True
        self._timer.cancel()

    def saved(self) -> None:
        """The state is on disk; what is left must end within the deadline too."""
        self._saving = False
        if self.received == signal.SIGTERM:
            self._start("what it was reading did not end")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(number, self._before[self.received])  # type: ignore[arg-type]
        if self.received == signal.SIGTERM and not self._saving:
            self._start("no step ended, so nothing new was saved")

    def _start(self, what: str) -> None:
        self._timer = threading.Timer(self._deadline, self._give_up, [what])
        self._timer.daemon = True
        self._timer.start()

    def _give_up(self, what: str) -> None:
        print(
            f"meanflow: error: {what} within {self._deadline:g} s after SIGTERM; the checkpoints are whole, and the "
            "same command goes on from the newest",
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
