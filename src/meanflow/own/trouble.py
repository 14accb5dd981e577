"""Errors of the user's code in one line, with their place."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_PACKAGE = Path(__file__).parents[1]
_TORCH = Path(torch.__file__).parent


def told(error: BaseException) -> str:
    """An exception in one line, with the place in the user's own code."""
    where = place(error)
    return first_line(error) + (f" ({where})" if where else "")


def first_line(error: BaseException) -> str:
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first}"


def place(error: BaseException) -> str:
    """file:line of the innermost frame outside this library and torch, empty when there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if not frame.filename.startswith("<") and _PACKAGE not in path.parents and _TORCH not in path.parents:
            return f"{path}:{frame.lineno}"
    return ""


@contextmanager
def blamed(files: Iterable[Path]) -> Iterator[None]:
    """Turn an error that passed through one of these files, of the user's own code, into a ValueError with its place.

    Complaints of this library pass as they are: they say themselves what to do.
    """
    paths = {str(file) for file in files}
    try:
        yield
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in paths]
        if not frames or (isinstance(error, ValueError) and not place(error)):
            raise
        raise ValueError(f"{frames[-1].filename}:{frames[-1].lineno} fails: {first_line(error)}") from error
