"""What the commands share: parsing of words, numbers and settings."""

from __future__ import annotations

import os
from typing import Any

import tyro

MOST = 10_000_000  # numbers in a list such as that of seeds; our choice


def parse(kind: Any, words: list[str], command: str, default: Any = None) -> Any:
    """Parse words into a dataclass; tyro itself explains wrong options and exits with 2."""
    if "" in words:  # it would name the present folder
        raise ValueError(f"meanflow {command} was given an empty word, perhaps a variable that is not set")
    given = {} if default is None else {"default": default}
    return tyro.cli(kind, args=words, prog=f"meanflow {command}", config=(tyro.conf.FlagCreatePairsOff,), **given)


def numbers(text: str, name: str) -> list[int]:
    """ "3,7" or "0-63" as integers."""
    found: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not _is_number(low) or (dash and not _is_number(high)):
            raise ValueError(f"--{name} takes numbers and ranges such as 3,7 or 0-63, got {text!r}")
        places = range(int(low), int(high if dash else low) + 1)
        if len(found) + _length(places) > MOST:
            raise ValueError(f"--{name} {text!r} are more than {MOST:,} numbers; ask for fewer at a time")
        found += places
    if not found:
        raise ValueError(f"--{name} {text!r} is an empty range; the smaller number comes first")
    return found


def _is_number(text: str) -> bool:
    # isdigit alone takes superscripts, of which int() can make nothing; 18 digits fit into 64 bits.
    return text.isascii() and text.isdigit() and len(text) <= 18


def _length(places: range) -> int:
    # len() of a range that is too long raises
    return max(places.stop - places.start, 0)


def at_least_one(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def floats(text: str, name: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--{name} takes numbers such as 1,0.5,0, got {text!r}") from error


def first_process() -> bool:
    """Whether this process prints: the first of those that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def option(words: list[str], name: str) -> str | None:
    for i, word in enumerate(words):
        if word == name and i + 1 < len(words):
            return words[i + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def settings_text(settings: Any) -> str:
    """Every setting of a recipe as an option, a line each, as a shell takes it."""
    from ..recipes import options  # here, because every command needs this module and few need the recipes

    return "\n".join(f"  {text}" for text in options(settings))
