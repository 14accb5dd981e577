"""Settings as flat names: what differs between two of them, how to change some, and the options that say so."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

S = TypeVar("S")


def leaves(settings: Any) -> dict[str, Any]:
    """Every setting of nested dataclasses under its dotted name, such as objective.weighting.c."""
    found: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            found |= {f"{field.name}.{name}": leaf for name, leaf in leaves(value).items()}
        else:
            found[field.name] = value
    return found


def changes(old: Any, new: Any) -> dict[str, Any]:
    """The settings of `new` that differ from those of `old`, by dotted name."""
    before = leaves(old)
    return {name: value for name, value in leaves(new).items() if value != before[name]}


def changed(settings: S, values: Mapping[str, Any]) -> S:
    """The settings with other values under some dotted names."""
    for name, value in values.items():
        first, _, rest = name.partition(".")
        inner = changed(getattr(settings, first), {rest: value}) if rest else value
        settings = replace(settings, **{first: inner})  # type: ignore[type-var]
    return settings


def option(name: str, value: Any) -> str:
    """A setting as an option of `meanflow train`, quoted for a shell; empty for a flag that is off."""
    # Training options carry no prefix on the command line.
    name = f"--{name.removeprefix('training.').replace('_', '-')}"
    if isinstance(value, bool):
        return name if value else ""
    words = value if isinstance(value, tuple | list) else (value,)
    return " ".join([name, *(shlex.quote(str(word)) for word in words)])


def options(settings: Any) -> list[str]:
    """Every setting as an option of `meanflow train`."""
    return [text for text in (option(name, value) for name, value in leaves(settings).items()) if text]
