"""Data of the user's own code, opened for a command."""

from __future__ import annotations

from typing import Any

from .. import own
from ..core.conditions import LABEL
from ..data import DataError, Dataset, Samples, conditions_of, open_data
from ..own import named


def open_own(target: str, split: str = "train", **options: Any) -> Dataset:
    """The data that PATH.py:NAME or module:NAME means; options: those of open_data. DataError names the target."""
    code = named(target)
    try:
        data = open_data(own.data(code, {"split": split}), **options)
        if isinstance(data, Samples) and data.classes is None:
            # Whoever is to build a network for them must know how many there are, and nothing but a look tells.
            data.classes = conditions_of(data).get(LABEL, {}).get("classes")
        return data
    except DataError as error:
        raise DataError(f"{target}: {error}") from error
