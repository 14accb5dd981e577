"""Columns beside the samples (labels, attributes, vectors) as conditions."""

import csv
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.conditions import Cond
from ..core.conditions import take as take_rows
from .conditions import check_classes, check_cond, is_labels
from .errors import DataError

LABEL_NAMES = ("label", "labels", "class", "cls", "target", "fine_label", "y")
FILE_NAMES = ("file_name", "filename", "file", "image_id", "image", "name")  # the first is that of Hugging Face
FEW = 100  # our choice: this many different texts are still classes, even if each occurs but once
Column = Sequence[object] | np.ndarray[Any, Any]
Columns = Mapping[str, Column]


@dataclass(frozen=True)
class Conditions:
    """A condition with what its numbers mean: the names of classes, or of the values of attributes."""

    cond: Cond = None
    classes: int | None = None
    class_names: tuple[str, ...] | None = None
    values: dict[str, tuple[str, ...]] = field(default_factory=dict)
    in_names: bool = False  # the names of the files tell them, so a fingerprint of names covers them

    def rows(self, rows: Tensor) -> "Conditions":
        """The same for some of the samples."""
        return replace(self, cond=take_rows(self.cond, rows))


def from_folders(labels: Sequence[int], names: tuple[str, ...]) -> Conditions:
    """Class labels [N] that follow from the names of the files."""
    return Conditions(torch.tensor(labels, dtype=torch.int64, device="cpu"), len(names), names, in_names=True)


def from_columns(
    columns: Columns,
    length: int,
    where: str,
    wanted: str | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
) -> Conditions:
    """Conditions out of named columns of one value a sample.

    wanted: "none", or the names of columns with commas between. One column of integers or texts becomes class labels,
        one of floats or lists a vector, several a dict. None takes a column called label (class, cls, target,
        fine_label, y), else all that are no free text.
    names: what the integers of a column mean. Raises DataError naming the column and the row.
    """
    names, encoded, left_out = names or {}, {}, []
    chosen = chosen_columns(list(columns), wanted, where)
    for key in chosen:
        try:
            encoded[key] = _encoded(columns[key], names.get(key))
        except _Unusable as reason:
            if wanted is not None or len(chosen) == 1:
                raise DataError(f"{where}: the column {key!r} {reason}") from reason
            left_out.append(key)
    if left_out:
        warnings.warn(f"{where}: columns that are no condition were left out: {', '.join(left_out)}", stacklevel=2)
    return _assembled(encoded, length, where)


def chosen_columns(columns: Sequence[str], wanted: str | None, where: str) -> list[str]:
    """Which of the columns `wanted` means, as in from_columns; DataError for one that is not there."""
    if wanted is None:
        return [key for key in LABEL_NAMES if key in columns][:1] or list(columns)
    chosen = [] if wanted == "none" else [key.strip() for key in wanted.split(",")]
    unknown = [key for key in chosen if key not in columns]
    if unknown:
        known = ", ".join(columns) or "(none)"
        raise DataError(f"{where}: there is no column {unknown[0]!r} for a condition; there are: {known}")
    return chosen


def parse_table(text: str, name: str, where: str) -> dict[str, list[object]]:
    """Columns of a .csv with a header line, or of a .jsonl; numbers are recognised."""
    rows = _json_rows(text, where) if name.endswith(".jsonl") else _csv_rows(text, where)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    for number, row in enumerate(rows):
        missing = next((key for key in keys if row.get(key) in (None, "")), None)
        if missing is not None:
            raise DataError(f"{where}: row {number + 1} has no value for {missing!r}; fill it in or drop the column")
    return {key: numbers([row[key] for row in rows]) for key in keys}


def by_file(columns: dict[str, list[object]], names: Sequence[str], where: str) -> dict[str, list[object]]:
    """The columns in the order of the image names, found by the column of file names; DataError for a missing one."""
    key = next((name for name in FILE_NAMES if name in columns), None)
    if key is None:
        raise DataError(
            f"{where}: has the columns {', '.join(columns) or '(none)'}; one must be called file_name and hold the "
            f"names of the images"
        )
    row = {str(name): number for number, name in enumerate(columns[key])}
    lost = [name for name in names if name not in row]
    if lost:
        raise DataError(
            f"{where}: {len(lost)} of {len(names)} images have no row, the first: {lost[0]}; add it, or remove the file"
        )
    order = [row[name] for name in names]
    return {name: [column[i] for i in order] for name, column in columns.items() if name != key}


class _Unusable(Exception):
    """Why a column is no condition."""


def _assembled(encoded: dict[str, tuple[Tensor, tuple[str, ...] | None]], length: int, where: str) -> Conditions:
    if not encoded:
        return Conditions()
    if len(encoded) > 1:
        cond = check_cond({key: tensor for key, (tensor, _) in encoded.items()}, length, where)
        return Conditions(cond, values={key: names for key, (_, names) in encoded.items() if names is not None})
    tensor, names = next(iter(encoded.values()))
    cond = check_cond(tensor[:, None] if tensor.ndim == 1 and tensor.is_floating_point() else tensor, length, where)
    return Conditions(cond, check_classes(cond, None, names, where) if is_labels(cond) else None, names)


def _encoded(column: Column, names: Sequence[str] | None) -> tuple[Tensor, tuple[str, ...] | None]:
    """A column as numbers with what they mean."""
    empty = next((row for row, value in enumerate(column) if value is None), None)
    if empty is not None:
        raise _Unusable(f"has no value in sample {empty}; fill it in or leave the column out")
    try:
        values = np.asarray(column)
    except ValueError as error:
        raise _Unusable("holds lists of different lengths; pad them or leave the column out") from error
    if values.dtype.kind in "biu":
        return torch.from_numpy(values.astype(np.int64)), None if names is None else tuple(names)
    if values.dtype.kind == "f":
        return torch.from_numpy(values.astype(np.float32)), None
    if values.dtype.kind != "U" or values.ndim != 1:
        kind = type(column[0]).__name__
        raise _Unusable(f"holds values of type {kind}, wanted numbers, texts or lists of numbers; leave it out")
    distinct, codes = np.unique(values, return_inverse=True)
    if len(distinct) > FEW and 2 * len(distinct) > len(values):
        raise _Unusable(
            f"holds {len(distinct):,} different texts in {len(values):,} samples, so these are no classes; leave it "
            f"out, or turn texts into vectors in a data set of your own"
        )
    return torch.from_numpy(codes.astype(np.int64)), tuple(map(str, distinct))


def _csv_rows(text: str, where: str) -> list[dict[str, object]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        rows: list[dict[str, object]] = [dict(row) for row in reader]
    except csv.Error as error:
        raise DataError(f"{where}: line {reader.line_num} is no CSV ({error}); repair it") from error
    wrong = next((number for number, row in enumerate(rows) if None in row), None)
    if wrong is not None:
        raise DataError(f"{where}: row {wrong + 1} has more values than the header has names; repair it")
    return rows


def _json_rows(text: str, where: str) -> list[dict[str, object]]:
    rows = []
    for number, line in enumerate(text.splitlines()):
        try:
            row = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: line {number + 1} is no JSON ({error}); repair it") from error
        if not isinstance(row, dict):
            raise DataError(f'{where}: line {number + 1} is no JSON object; write {{"file_name": ..., ...}}')
        if row:
            rows.append(row)
    return rows


def numbers(column: list[object]) -> list[object]:
    """Texts as integers or floats where all of them are."""
    for kind in (int, float):
        try:
            return [kind(value) if isinstance(value, str) else value for value in column]
        except ValueError:
            continue
    return column
