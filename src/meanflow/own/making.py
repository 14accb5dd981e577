"""Networks and data out of the user's classes, functions and objects."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from .code import Code
from .trouble import told


def network(code: Code, offered: Mapping[str, Any]) -> nn.Module:
    """The network that a class, a function or an object of the user's stands for.

    offered: arguments by name, such as shape and classes; those that the signature names are passed. Raises ValueError
    for what is no network, cannot be called with these, or fails.
    """
    made = code.value if isinstance(code.value, nn.Module) else _made(code, offered, "a network")
    if not isinstance(made, nn.Module):
        raise ValueError(
            f"{code.target} must be a torch nn.Module class, or a function that returns a module, but it returned "
            f"{_kind(made)}"
        )
    return made


def data(code: Code, offered: Mapping[str, Any]) -> Any:
    """The data, of any kind that `open_data` takes, that a class, a function or an object of the user's stands for.

    A function that yields is taken for a stream as it is. Raises ValueError as `network` does.
    """
    value = code.value
    if not inspect.isclass(value) and (not callable(value) or hasattr(value, "__len__")):
        return value
    return value if inspect.isgeneratorfunction(value) else _made(code, offered, "data")


def _made(code: Code, offered: Mapping[str, Any], what: str) -> Any:
    """What the class or function returns, called with those of the offered arguments that it names."""
    if not callable(code.value):
        raise ValueError(
            f"{code.target} is of type {_kind(code.value)} and cannot be called; name a class or a function that "
            f"makes {what}"
        )
    given = _arguments(code, offered)
    try:
        return code.value(**given)
    except Exception as error:
        raise ValueError(f"{code.target}({', '.join(given)}) fails: {told(error)}") from error


def _arguments(code: Code, offered: Mapping[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(code.value).parameters.values()
    except (TypeError, ValueError):  # built in, without a signature
        return {}
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    alone = [p for p in parameters if p.kind is p.POSITIONAL_ONLY] + [p for p in by_name if p.name not in offered]
    lacking = [p.name for p in alone if p.default is p.empty]
    if lacking:
        raise ValueError(
            f"{code.target} has arguments without a default that nobody can know: {', '.join(lacking)}. Give them one, "
            f"or name a function that needs none. What it can ask for by name: {', '.join(offered)}"
        )
    return {p.name: offered[p.name] for p in by_name if p.name in offered}


def _kind(value: Any) -> str:
    return type(value).__name__
