"""Complete settings under a name."""

from .cells import Cell, cell, cells
from .config import NetSettings, ObjectiveSettings, Recipe, TimesSettings, build, build_objective, build_own, net_for
from .cost import Cost, Estimate, cost, gpu_hours
from .leaves import changed, changes, leaves, option, options
from .notices import batch_notice, expected, notices
from .paper import FACTS, Facts
from .recipes import RECIPES, default_name, recipe

__all__ = [
    "FACTS",
    "RECIPES",
    "Cell",
    "Cost",
    "Estimate",
    "Facts",
    "NetSettings",
    "ObjectiveSettings",
    "Recipe",
    "TimesSettings",
    "batch_notice",
    "build",
    "build_objective",
    "build_own",
    "cell",
    "cells",
    "changed",
    "changes",
    "cost",
    "default_name",
    "expected",
    "gpu_hours",
    "leaves",
    "net_for",
    "notices",
    "option",
    "options",
    "recipe",
]
