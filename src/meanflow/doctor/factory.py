"""A network from a user's file, named as PATH.py:Factory."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..own import named, told


def from_file(target: str) -> tuple[Any, ...]:
    """What the factory PATH.py:NAME or module:NAME returns, as (net, x, cond).

    Raises ValueError for a missing file or name, with the nearest one, and for errors in the file, with their place.
    """
    factory = named(target).value
    if isinstance(factory, nn.Module):
        return factory, None, None
    if not callable(factory):
        raise ValueError(f"{target} is of type {type(factory).__name__}; name a function that returns the network")
    try:
        made = factory()
    except Exception as error:
        raise ValueError(f"{target}() fails: {told(error)}") from error
    return _three(target, made)


def _three(target: str, made: Any) -> tuple[Any, ...]:
    """net, (net, x) or (net, x, cond) as three."""
    parts = made if isinstance(made, tuple | list) else (made,)
    if not 1 <= len(parts) <= 3 or not isinstance(parts[0], nn.Module):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise ValueError(f"{target}() must return net, (net, x) or (net, x, cond), but returned ({kinds})")
    if len(parts) == 1 and not hasattr(parts[0], "shape"):
        raise ValueError(
            f"{target}() returned a {type(parts[0]).__name__} that does not say the shape of a sample: "
            "return (net, x, cond) with a few rows of data"
        )
    return (*parts, None, None)[:3]
