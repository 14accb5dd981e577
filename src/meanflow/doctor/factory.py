"""A network from a user's file, named as PATH.py:Factory."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from .subject import told


def from_file(target: str) -> tuple[Any, ...]:
    """What the factory PATH.py:NAME returns, as (net, x, cond).

    Raises ValueError for a missing file or name, with the nearest one, and for errors in the file, with their place.
    """
    file, colon, name = target.rpartition(":")
    if not colon or not file.endswith(".py") or not name:
        raise ValueError(f"name a factory as PATH.py:Factory, e.g. net.py:build, got {target!r}")
    module = _load(Path(file))
    if not hasattr(module, name):
        raise ValueError(f"{file} has no {name}{_nearest(name, _public(module))}")
    factory = getattr(module, name)
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


def _load(path: Path) -> ModuleType:
    if not path.is_file():
        beside = path.parent.glob("*.py") if path.parent.is_dir() else []
        raise ValueError(f"there is no file {path}{_nearest(path.name, (p.name for p in beside))}")
    name = f"_meanflow_doctor_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up; the folder is where `python PATH.py` would import from.
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} cannot be loaded: {told(error)}") from error
    return module


def _public(module: ModuleType) -> list[str]:
    return [name for name in vars(module) if not name.startswith("_")]


def _nearest(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
