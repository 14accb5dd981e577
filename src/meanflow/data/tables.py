"""Tables of numbers in .csv files."""

import csv
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .attributes import LABEL_NAMES, chosen_columns, from_columns, numbers
from .errors import DataError
from .tensors import Tensors


def table(path: Path, *, cond: str | None = None) -> Tensors:
    """The rows of a .csv file as vectors, its first line the names of the columns (or numbers already).

    cond: which columns are conditions instead, as in from_columns; by default one called label (class, target, ...).
    The numbers stay as they are: bring them to about mean 0 and deviation 1 beforehand. Raises DataError naming the
    row.
    """
    try:
        return _table(path, cond)
    except DataError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path}: cannot be read as a table of numbers ({error}); wanted a line of names, then numbers with commas "
            f"between; columns of text are named as conditions (--cond NAME) or removed"
        ) from error


def _table(path: Path, cond: str | None) -> Tensors:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True, skipinitialspace=True)
        names = next(reader, [])
        headless = bool(names) and all(_is_number(name) for name in names)
        names = [f"column {n}" for n in range(len(names))] if headless else [name.strip() for name in names]
        if len(set(names)) != len(names) or not all(names):
            raise ValueError(f"its first line has empty or repeated names: {', '.join(names)}")
        # without a column called label all columns are data
        wanted = "none" if cond is None and not {*LABEL_NAMES} & {*names} else cond
        chosen = chosen_columns(names, wanted, str(path))
        texts = _columns(reader, names, chosen, str(path)) if chosen else {}
    kept = [number for number, name in enumerate(names) if name not in chosen]
    if not kept:
        raise ValueError("it has no column left for the data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty file is refused below in our own words
        x = np.loadtxt(
            path,
            np.float32,
            delimiter=",",
            skiprows=int(not headless),
            usecols=kept,
            ndmin=2,
            encoding="utf-8-sig",
            quotechar='"',
        )
    if not len(x):
        raise ValueError("it has no rows")
    conditions = from_columns(texts, len(x), str(path), ",".join(texts) or "none")
    return Tensors(
        x,
        conditions.cond,
        classes=conditions.classes,
        class_names=conditions.class_names,
        values=conditions.values,
        source=str(path),
    )


def _columns(reader: Any, names: list[str], chosen: list[str], where: str) -> dict[str, list[object]]:
    """Some columns as texts or numbers."""
    places = [names.index(name) for name in chosen]
    found: list[list[object]] = [[] for _ in chosen]
    for row in reader:
        if not row:
            continue
        if len(row) != len(names):
            raise DataError(f"{where}: line {reader.line_num} has {len(row)} values, wanted {len(names)}; repair it")
        for column, place in zip(found, places, strict=True):
            column.append(row[place].strip())
    return {name: numbers(column) for name, column in zip(chosen, found, strict=True)}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
