"""The command line: parse, call, print. One module a command, each with a function `run`."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from .. import __version__
from .words import first_process, nearest

HELP = """\
meanflow: one-step generators, after "Mean Flows for One-step Generative Modeling" (arXiv:2505.13447)

  meanflow train digits                      train on the embedded handwritten digits
  meanflow train my-folder/ --size 32        train on a folder of images, one sub-folder a class or none
  meanflow encode my-folder/ latents/ --vae stabilityai/sd-vae-ft-mse   images to latents, to train on
  meanflow prepare my-folder/ fast/          write data once as arrays that are read many times faster
  meanflow status runs/digits                where a run stands, in one screen
  meanflow sample runs/digits --classes 3,7  draw samples, one network call each
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, 1 for a failure, 2 for wrong use, 128 + n after signal n."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if words[0] in ("-V", "--version"):
        print(__version__)
        return 0
    if words[0] not in COMMANDS:
        return _fail(f"unknown command {words[0]!r}{nearest(words[0], COMMANDS)}; see meanflow --help")
    warnings.showwarning = _show_warning
    return _guarded(words[0], words[1:])


def _guarded(command: str, words: list[str]) -> int:
    """Run the module of a command and turn the errors that a user can mend into one line."""
    try:
        # Imported when asked for: what other commands need is not paid for.
        run: Callable[[list[str]], int] = import_module(f".{command}", __package__).run
        return run(words)
    except (ValueError, FileNotFoundError) as error:
        return _fail(str(error))
    except (RuntimeError, OSError, FloatingPointError) as error:
        return _fail(str(error), code=1)
    except KeyboardInterrupt:
        return _fail("interrupted", code=130)


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"meanflow: warning: {message}", file=sys.stderr)


def _fail(message: str, code: int = 2) -> int:
    # Wrong use is the same in all processes that torchrun started; failures may be a process's own.
    if first_process():
        print(f"meanflow: error: {message}", file=sys.stderr)
    elif code != 2:
        print(f"meanflow: error in process {os.environ['RANK']}: {message}", file=sys.stderr)
    return code
