"""Complete settings under a name."""

from .config import NetSettings, ObjectiveSettings, Recipe, TimesSettings, build, build_net, build_objective
from .recipes import RECIPES, default_name, recipe

__all__ = [
    "RECIPES",
    "NetSettings",
    "ObjectiveSettings",
    "Recipe",
    "TimesSettings",
    "build",
    "build_net",
    "build_objective",
    "default_name",
    "recipe",
]
