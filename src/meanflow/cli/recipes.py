"""meanflow recipes."""

from __future__ import annotations

from ..recipes import RECIPES, recipe
from .words import settings_text


def run(words: list[str]) -> int:
    """List the recipes, or show one."""
    if words in ([], ["list"]):
        width = max(map(len, RECIPES))
        for name, make in RECIPES.items():
            print(f"{name:<{width}}  {(make.__doc__ or '').splitlines()[0]}")
        return 0
    if {"-h", "--help"} & set(words):
        print(
            "usage: meanflow recipes             list the recipes\n"
            "       meanflow recipes show NAME   print the settings of one"
        )
        return 0
    if words[0] != "show" or len(words) != 2:
        raise ValueError(f"use `meanflow recipes` or `meanflow recipes show NAME`, got {' '.join(words)!r}")
    found = recipe(words[1])
    print(f"{words[1]}: {RECIPES[words[1]].__doc__}\n{settings_text(found)}")
    return 0
