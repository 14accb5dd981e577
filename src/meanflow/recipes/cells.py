"""The cells of the paper's ablation tables, each a named change of the recipe imagenet-b4."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from .._hint import did_you_mean
from ..core.guidance import Guidance
from .ablations.table1 import TABLES, Table, Value
from .config import ObjectiveSettings, Recipe
from .leaves import changed, changes

# FID with one call that the authors' JAX code reaches after 80 epochs; source: its README.
CODE_FID: dict[str, float] = {"f:w=1": 60.75, "f:w=2": 20.24, "f:k=0.5": 18.70}


@dataclass(frozen=True)
class Cell:
    """A value of an ablation table: its name for --ablation, and the settings that it changes."""

    name: str
    table: Table
    value: Value
    changes: Mapping[str, Any]

    @property
    def chosen(self) -> bool:
        """Whether it is the value that the paper goes on with."""
        return self.value.label == self.table.chosen

    def fid(self, variant: str) -> float | None:
        """FID with one call that the paper, or the README of the authors' code, reports."""
        return CODE_FID.get(self.name) if variant == "code" else self.value.fid

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe with this cell's settings."""
        return changed(recipe, self.changes)


@cache
def cells() -> dict[str, Cell]:
    """All cells by name, in the paper's order."""
    # The tables vary a recipe without guidance; a cell is what they change in it.
    base = Recipe(objective=ObjectiveSettings(guidance=Guidance.from_paper(1.0)))
    found = {}
    for table in TABLES:
        for value in table.values:
            name = f"{table.letter}:{_short(value.label)}"
            found[name] = Cell(name, table, value, changes(base, value.change(base)))
    return found


def cell(name: str) -> Cell:
    """The cell of a name such as a:50; raises ValueError with those that there are."""
    letter, _, value = name.partition(":")
    wanted = f"{letter.strip().lower()}:{_short(value)}"
    if wanted not in cells():
        known = "\n  ".join(_listed())
        raise ValueError(f"there is no ablation {name!r}{did_you_mean(wanted, cells())}; there are\n  {known}")
    return cells()[wanted]


def _short(label: str) -> str:
    """ "25 %" as 25, "(v,0,1)" as v,0,1, "p = 0.5" as p=0.5: what needs no quoting in a shell."""
    return re.sub(r"[()]+", ",", re.sub(r"[\s%]", "", label)).strip(",")


def _listed() -> list[str]:
    return [
        f"{table.title}: " + " ".join(name for name, cell in cells().items() if cell.table is table) for table in TABLES
    ]
