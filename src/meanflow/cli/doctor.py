"""meanflow doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tyro

from ..doctor import doctor, from_file
from ..recipes import build_own
from .own_data import open_own
from .words import parse


@dataclass
class Doctor:
    """Examine a network of your own: its call, derivative, times, convention, dropout, compilation and cost.

    Exit code 0 when nothing is found, 1 when a check fails.
    """

    factory: tyro.conf.Positional[str]
    """PATH.py:NAME or module:NAME, called without arguments; it returns net, (net, x) or (net, x, cond)."""
    data: str | None = None
    """PATH.py:NAME or module:NAME of the data: the network is examined on their first rows, and may ask for their shape
    and classes by name, as in meanflow train --net."""
    gaussian: tuple[float, float] | None = None
    """Mean and standard deviation, when the network was trained on normal numbers."""
    compile: bool = False
    """Compare with torch.compile whatever the size; by default below 2 million parameters."""
    no_compile: bool = False
    """Leave that comparison out."""
    json: bool = False
    """Print one JSON object instead of a table."""


def run(words: list[str]) -> int:
    """Examine a network."""
    s = parse(Doctor, words, "doctor")
    if s.compile and s.no_compile:
        raise ValueError("give --compile or --no-compile, not both")
    net, x, cond = from_file(s.factory) if s.data is None else _on_data(s.factory, s.data)
    compile = s.compile if s.compile or s.no_compile else None
    report = doctor(net, x, cond, gaussian=s.gaussian, compile=compile)
    print(report.json() if s.json else report.text())
    return 0 if report.ok else 1


def _on_data(target: str, source: str) -> tuple[Any, ...]:
    """The network that training would build for the data, with the first of them."""
    data = open_own(source)
    return (build_own(target, data), *data.batch(list(range(min(4, len(data))))))
