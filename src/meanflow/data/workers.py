"""Reading in processes beside this one, in the order asked for."""

import signal
from collections.abc import Callable, Generator, Iterable
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader

Result = TypeVar("Result")
AHEAD = 2  # results that each process holds ready; torch's own default


def read_in_workers(
    read: Callable[[int], Result], positions: Iterable[int], workers: int
) -> Generator[Result, None, None]:
    """read(position) for every position, in their order, read ahead in `workers` processes (torch's DataLoader).

    What `read` raises is raised by the `next` that would have returned it. Closing the generator ends the processes.
    """
    loader: DataLoader[Any] = DataLoader(
        _Answers(read),  # type: ignore[arg-type]
        sampler=positions,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_to_the_parent,
    )
    for answer in loader:
        if isinstance(answer, Exception):
            raise answer
        yield answer


class _Answers(Generic[Result]):
    """Answers of `read` by position; an error is an answer too: torch would wrap it in the text of a traceback."""

    def __init__(self, read: Callable[[int], Result]) -> None:
        self._read = read

    def __getitem__(self, position: int) -> Result | Exception:
        try:
            return self._read(position)
        except Exception as error:
            return _portable(error)


def _portable(error: Exception) -> Exception:
    """The error without what cannot be sent to another process."""
    error.__cause__ = error.__context__ = error.__traceback__ = None
    return error


def _as_it_is(answer: Any) -> Any:
    return answer


def _leave_signals_to_the_parent(_: int) -> None:
    # Ctrl-C and a pre-emption reach the whole group; the parent ends its step, saves, and then ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
