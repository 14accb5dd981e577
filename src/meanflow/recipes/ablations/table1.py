"""Table 1 of the paper: what was varied, with the one-call FID that the paper reports for every value.

Source: arXiv:2505.13447, table 1 (B/4, ImageNet 256x256 latents, 80 epochs; a to e without guidance).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from ...core.guidance import Guidance
from ...core.weighting import AdaptiveWeight
from ...nets.layers import Conditioning
from ..config import Recipe

Change = Callable[[Recipe], Recipe]


@dataclass(frozen=True)
class Value:
    """One row of a table: its label, the paper's FID, and what it changes in a recipe."""

    label: str
    fid: float
    change: Change


@dataclass(frozen=True)
class Table:
    """One part of table 1; `chosen` is the label that the paper prints in bold."""

    letter: str
    title: str
    chosen: str
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        assert self.chosen in [value.label for value in self.values], f"{self.chosen!r} is no value of {self.title}"


def _objective(**changes: Any) -> Change:
    return lambda recipe: replace(recipe, objective=replace(recipe.objective, **changes))


def _times(**changes: Any) -> Change:
    return lambda recipe: _objective(times=replace(recipe.objective.times, **changes))(recipe)


def _conditioning(names: Conditioning) -> Change:
    return lambda recipe: replace(recipe, net=replace(recipe.net, conditioning=names))


def _power(p: float) -> Change:
    return _objective(weighting=AdaptiveWeight(p=p))


def _guidance(w: float, k: float = 0.0) -> Change:
    # The interval of B/4 is [0, 1]: guidance at all times.
    return _objective(guidance=Guidance.from_paper(w, k))


# The paper writes tangents over (z, r, t); the objective's setting is the part (dr, dt).
TABLES: tuple[Table, ...] = (
    Table(
        "a",
        "share of rows with r != t",
        "25 %",
        (
            Value("0 %", 328.91, _times(share_equal=1.0)),
            Value("25 %", 61.06, _times(share_equal=0.75)),
            Value("50 %", 63.14, _times(share_equal=0.5)),
            Value("100 %", 67.32, _times(share_equal=0.0)),
        ),
    ),
    Table(
        "b",
        "tangent of (z, r, t)",
        "(v,0,1)",
        (
            Value("(v,0,1)", 61.06, _objective(tangent=(0.0, 1.0))),
            Value("(v,0,0)", 268.06, _objective(tangent=(0.0, 0.0))),
            Value("(v,1,0)", 329.22, _objective(tangent=(1.0, 0.0))),
            Value("(v,1,1)", 137.96, _objective(tangent=(1.0, 1.0))),
        ),
    ),
    Table(
        "c",
        "times that the network sees",
        "t,t-r",
        (
            Value("t,r", 61.75, _conditioning("t,r")),
            Value("t,t-r", 61.06, _conditioning("t,t-r")),
            Value("t,r,t-r", 63.98, _conditioning("t,r,t-r")),
            Value("t-r", 63.13, _conditioning("t-r")),
        ),
    ),
    Table(
        "d",
        "distribution of times",
        "lognorm(-0.4,1.0)",
        (
            Value("uniform(0,1)", 65.90, _times(t="uniform(0,1)")),
            Value("lognorm(-0.2,1.0)", 63.83, _times(t="lognorm(-0.2,1)")),
            Value("lognorm(-0.2,1.2)", 64.72, _times(t="lognorm(-0.2,1.2)")),
            Value("lognorm(-0.4,1.0)", 61.06, _times(t="lognorm(-0.4,1)")),
            Value("lognorm(-0.4,1.2)", 61.79, _times(t="lognorm(-0.4,1.2)")),
        ),
    ),
    Table(
        "e",
        "power p of the adaptive weight",
        "p = 1",
        (
            Value("p = 0", 79.75, _power(0.0)),
            Value("p = 0.5", 63.98, _power(0.5)),
            Value("p = 1", 61.06, _power(1.0)),
            Value("p = 1.5", 66.57, _power(1.5)),
            Value("p = 2", 69.19, _power(2.0)),
        ),
    ),
    Table(
        "f",
        "guidance scale w at k = 0",
        "w = 3",
        (
            Value("w = 1", 61.06, _guidance(1.0)),
            Value("w = 1.5", 33.33, _guidance(1.5)),
            Value("w = 2", 20.15, _guidance(2.0)),
            Value("w = 3", 15.53, _guidance(3.0)),
            Value("w = 5", 20.75, _guidance(5.0)),
        ),
    ),
    Table(
        "f",
        "mix k at effective scale w' = 2",
        "k = 0.9",
        tuple(
            Value(f"k = {k:g}", fid, _objective(guidance=Guidance(scale=2.0, mix=k)))
            for k, fid in ((0.0, 20.15), (0.5, 19.15), (0.8, 19.10), (0.9, 18.63), (0.95, 19.17))
        ),
    ),
)
LETTERS = tuple(dict.fromkeys(table.letter for table in TABLES))


def tables(letters: Iterable[str]) -> tuple[Table, ...]:
    """The tables of these letters, in the paper's order; raises ValueError for none or an unknown one."""
    wanted = [letter.strip().lower() for letter in letters]
    unknown = [letter for letter in wanted if letter not in LETTERS]
    if unknown or not wanted:
        came = ", ".join(repr(letter) for letter in unknown) or "none"
        raise ValueError(f"tables are {', '.join(LETTERS)} (table 1 of the paper), got {came}; write e.g. --tables a,e")
    return tuple(table for table in TABLES if table.letter in wanted)


def names(base: Recipe) -> dict[Recipe, str]:
    """A name for every distinct recipe of all tables; what several tables share has one name, `base` above all."""
    found = {base: "base"}
    for table in TABLES:
        for value in table.values:
            plain = re.sub(r"[^0-9A-Za-z.-]+", "_", value.label).strip("_")
            found.setdefault(value.change(base), f"{table.letter}-{plain}")
    return found
