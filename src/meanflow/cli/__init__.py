"""The command line: parse, call, print. One module a command, each with a function `run`."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from importlib import import_module
from typing import Any

from .. import __version__
from .._hint import did_you_mean
from .._interrupt import quiet_interrupt
from .words import first_process

HELP = """\
meanflow: one-step generators, after "Mean Flows for One-step Generative Modeling" (arXiv:2505.13447)

  meanflow train digits                      train on the embedded handwritten digits
  meanflow train my-folder/ --size 32        train on a folder of images, one sub-folder a class or none
  meanflow encode my-folder/ latents/ --vae stabilityai/sd-vae-ft-mse   images to latents, to train on
  meanflow prepare my-folder/ fast/          write data once as arrays that are read many times faster
  meanflow status runs/digits                where a run stands, in one screen
  meanflow sample runs/digits --classes 3,7  draw samples, one network call each
  meanflow serve runs/digits                 an HTTP service: seeds and labels in, pictures or arrays out
  meanflow push runs/digits me/digits        weights, config and a model card to the Hugging Face hub
  meanflow export runs/digits digits.onnx    one file that runs anywhere; or .pt2
  meanflow page runs/digits page/            a web page that draws samples in the visitor's browser
  meanflow evaluate runs/digits              say in numbers how good they are
  meanflow compare runs/a runs/b             side by side, differences with intervals
  meanflow diagnose runs/digits              what one call loses against many, and where
  meanflow ema runs/digits --sweep 0.02:0.25:12   the best length of averaging, found after the run
  meanflow bench step | sample               the price of a training step, the speed of sampling
  meanflow doctor net.py:build               examine your own network before training it
  meanflow convert authors-jax FOLDER OUT    bring in the authors' weights; `meanflow convert` lists the formats
  meanflow recipes                           list the recipes; `meanflow recipes show NAME` prints one
  meanflow ablate digits                     repeat the ablations of the paper's table 1 at a small scale

`meanflow COMMAND --help` explains the options of a command. The same train command again resumes a run.
"""


COMMANDS = (
    "train",
    "status",
    "prepare",
    "encode",
    "sample",
    "serve",
    "push",
    "export",
    "page",
    "evaluate",
    "compare",
    "diagnose",
    "ema",
    "ablate",
    "recipes",
    "bench",
    "doctor",
    "convert",
)


INTERNAL = 70  # EX_SOFTWARE of sysexits.h
REPORT = "MEANFLOW_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code.

    0, 1 for a failure, 2 for wrong use, 70 for a fault of meanflow itself, 128 + n after signal n, so 141 where whoever
    read the output has gone.
    """
    _prepare_process()
    words = list(sys.argv[1:] if arguments is None else arguments)
    with redirect_stderr(_Lasting(sys.stderr)):
        try:
            code = _chosen(words)
            sys.stdout.flush()
        except BrokenPipeError as error:
            code = _broken_pipe(error)
        except OSError as error:  # of the output itself, e.g. a full disk
            code = _fail(_text(error), code=1)
            _to_nowhere(sys.stdout)
        except KeyboardInterrupt:
            code = _fail("interrupted", code=130)
    return code


class _Lasting(io.TextIOBase):
    """A stream of messages that goes on where nobody reads it any more: no reason to stop a training of days."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except OSError:
            _to_nowhere(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _to_nowhere(self._stream)

    def isatty(self) -> bool:
        return bool(self._stream.isatty())

    def fileno(self) -> int:
        return int(self._stream.fileno())

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(self._stream.encoding)


def _to_nowhere(stream: Any) -> None:
    """What is still in the buffer of a broken stream must not be tried once more when the interpreter ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _prepare_process() -> None:
    """Names of files and of classes may hold what a terminal cannot show: it is escaped instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGINT) is quiet_interrupt:  # no longer while modules are loaded
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _chosen(words: list[str]) -> int:
    """Help, version, or the command that the first word names."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if words[0] in ("-V", "--version"):
        print(__version__)
        return 0
    if words[0] not in COMMANDS:
        return _fail(f"unknown command {words[0]!r}{did_you_mean(words[0], COMMANDS)}; see meanflow --help")
    warnings.showwarning = _show_warning
    return _guarded(words[0], words[1:])


def _guarded(command: str, words: list[str]) -> int:
    """Run the module of a command and turn the errors that a user can mend into one line."""
    try:
        # Imported when asked for: what other commands need is not paid for.
        run: Callable[[list[str]], int] = import_module(f".{command}", __package__).run
        return run(words)
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except (ValueError, FileNotFoundError) as error:
        return _fail(_text(error))
    except (RuntimeError, OSError, FloatingPointError, ImportError) as error:
        return _fail(_text(error), code=1)
    except MemoryError as error:
        return _fail(f"not enough memory ({_text(error)}); choose a smaller batch or network", code=1)
    except Exception as error:
        return _internal(error)


def _text(error: BaseException) -> str:
    """What an error says; its kind where it says nothing."""
    return str(error).strip() or type(error).__name__


def _internal(error: Exception) -> int:
    """What no command foresaw: said as the fault of meanflow that it is, with the traceback for who asks for it."""
    if os.environ.get(REPORT):
        traceback.print_exception(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return _fail(
        f"this is a fault of meanflow: {type(error).__name__}: {_text(error)} (line {where.lineno} of "
        f"{os.path.basename(where.filename)}). Please report it with the command and what {REPORT}=1 prints before it",
        code=INTERNAL,
    )


def _broken_pipe(error: BrokenPipeError) -> int:
    """End quietly, as other tools do, where the reader of the output has gone, e.g. head; else it is a failure."""
    if not _reader_gone(sys.stdout):
        return _fail(_text(error), code=1)
    _to_nowhere(sys.stdout)
    return 128 + signal.SIGPIPE


def _reader_gone(stream: Any) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):  # not a stream of the system
        return False


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"meanflow: warning: {message}", file=sys.stderr)


def _fail(message: str, code: int = 2) -> int:
    # Wrong use is the same in all processes that torchrun started; failures may be a process's own.
    if first_process():
        print(f"meanflow: error: {message}", file=sys.stderr)
    elif code != 2:
        print(f"meanflow: error in process {os.environ['RANK']}: {message}", file=sys.stderr)
    return code
