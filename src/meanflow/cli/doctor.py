"""meanflow doctor."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from ..doctor import doctor, from_file
from .words import parse


@dataclass
class Doctor:
    """Examine a network of your own: its call, derivative, times, convention, dropout, compilation and cost.

    Exit code 0 when nothing is found, 1 when a check fails.
    """

    factory: tyro.conf.Positional[str]
    """PATH.py:Factory, called without arguments; it returns net, (net, x) or (net, x, cond)."""
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
    net, x, cond = from_file(s.factory)
    compile = s.compile if s.compile or s.no_compile else None
    report = doctor(net, x, cond, gaussian=s.gaussian, compile=compile)
    print(report.json() if s.json else report.text())
    return 0 if report.ok else 1
