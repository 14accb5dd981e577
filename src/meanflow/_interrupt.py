"""Ctrl-C while torch is still being loaded ends the command without a traceback."""

from __future__ import annotations

import os
import signal
import sys
import threading
from itertools import pairwise
from types import FrameType


def quiet_interrupt(number: int, frame: FrameType | None) -> None:
    """Say it and end; nothing has been begun yet."""
    os.write(2, b"meanflow: error: interrupted\n")
    os._exit(128 + number)


def _is_the_command() -> bool:
    """Whether this process was started as `meanflow` or `python -m meanflow.cli`, and is no user's script."""
    words = sys.orig_argv
    module = ("-m", "meanflow.cli") in pairwise(words)
    return module or os.path.basename(sys.argv[0]) == "meanflow"


if (
    signal.getsignal(signal.SIGINT) is signal.default_int_handler
    and threading.current_thread() is threading.main_thread()
    and _is_the_command()
):
    signal.signal(signal.SIGINT, quiet_interrupt)
