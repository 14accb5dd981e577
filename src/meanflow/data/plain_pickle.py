"""Pickles of plain values and numpy arrays, read without running anything that they ask for."""

import io
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import DataError

Array = np.ndarray[Any, Any]
PLAIN_DTYPE = re.compile(r"[|<>=]?([biuf][1248]|b1)")


def load_plain(content: bytes, where: str) -> Any:
    """The lists, dicts, numbers, bytes and numpy arrays in a pickle; DataError for anything else in it.

    Nothing is imported and nothing is called: a pickle that names a function or a class gets a stand-in of this
    module for the few that numpy writes, and is refused for all others. Texts of Python 2 come as bytes.
    """
    try:
        return _finished(_Reader(io.BytesIO(content), encoding="bytes").load())
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    # a damaged pickle leads the reader to any error that its stack machine can raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{where}: cannot be read as a pickle of plain arrays ({reason}); fetch it again") from error


class _Dtype:
    """Stands for numpy.dtype: keeps what it is called."""

    def __init__(self, code: bytes | str, *_: object) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else str(code)
        self.byte_order = ""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        self.byte_order = order.decode("latin1") if isinstance(order, bytes) else str(order)

    def numpy(self) -> np.dtype[Any]:
        name = self.byte_order.strip("|=") + self.code.lstrip("|<>=") if self.byte_order else self.code
        if not PLAIN_DTYPE.fullmatch(name):
            raise DataError(f"holds an array of dtype {name!r}, wanted plain numbers; convert it to a .npz file")
        return np.dtype(name)


class _Array:
    """Stands for numpy.ndarray: keeps shape, dtype and bytes until they are checked."""

    shape: Any = ()
    dtype: Any = None
    fortran = False
    content: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, fortran, self.content = state
        self.fortran = bool(fortran)

    def numpy(self) -> Array:
        if not isinstance(self.dtype, _Dtype) or not isinstance(self.content, bytes | bytearray):
            raise DataError("holds an array of Python objects, wanted plain numbers; convert it to a .npz file")
        dtype, shape = self.dtype.numpy(), tuple(int(size) for size in self.shape)
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(self.content):
            raise DataError(f"declares an array of shape {list(shape)}, but {len(self.content)} bytes; fetch it again")
        return np.frombuffer(self.content, dtype).reshape(shape, order="F" if self.fortran else "C")


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any = "C") -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order in ("F", b"F"), content))
    return array


def _encode(text: str, *_: object) -> bytes:
    return text.encode("latin1")


STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", lambda *_: _Array()),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}


# The reader written in Python: that in C fills a table as long as the largest number a damaged file names.
class _Reader(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise DataError(
                f"wants to load {module}.{name}, which could run code, so it is not read any further; plain arrays "
                f"need nothing of the kind: fetch the original file, or convert it to a .npz file where you trust it"
            )
        return STAND_INS[module, name]


def _finished(value: Any, depth: int = 0) -> Any:
    """The value with arrays in the place of their stand-ins."""
    if depth > 20:
        raise DataError("is nested more than 20 deep, wanted a dict of arrays")
    if isinstance(value, _Array):
        return value.numpy()
    if isinstance(value, dict):
        return {key: _finished(item, depth + 1) for key, item in value.items()}
    return [_finished(item, depth + 1) for item in value] if isinstance(value, list) else value
