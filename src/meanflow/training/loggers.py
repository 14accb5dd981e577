"""Where metrics go besides metrics.jsonl: one small interface, and TensorBoard, CSV and Weights & Biases behind it."""

from __future__ import annotations

import csv
import importlib.util
import io
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ..data.files import write_text

Record = dict[str, float]


class Logger(Protocol):
    """Takes the records of a run; `images` in each says how many images had been seen."""

    def record(self, record: Record) -> None:
        """Take one record."""

    def close(self) -> None:
        """Finish writing."""


def open_loggers(
    names: Sequence[str] | None, folder: Path, before: list[Record], config: dict[str, Any]
) -> list[Logger]:
    """The loggers of a run; None is TensorBoard where it is installed.

    before: the records that are kept when a run goes on.
    """
    if names is None:
        names = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    kinds: dict[str, type[Any]] = {"tensorboard": TensorBoard, "csv": Csv, "wandb": Wandb}
    return [kinds[name](folder, before, config) for name in names]


def check_loggers(names: Sequence[str] | None) -> None:
    """Raise ValueError for loggers that do not exist or are not installed, naming the extra to install."""
    extras = {"tensorboard": "log", "wandb": "wandb", "csv": None}
    for name in names or ():
        if name not in extras:
            raise ValueError(f"loggers are {', '.join(extras)}, got {name!r}")
        if extras[name] and importlib.util.find_spec(name) is None:
            raise ValueError(f"the logger {name} is not installed: pip install 'meanflow[{extras[name]}]'")


class TensorBoard:
    """Scalars in the folder tensorboard/, over images seen."""

    def __init__(self, folder: Path, before: list[Record], config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        seen = int(before[-1]["images"]) if before else 0
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=seen + 1)

    def record(self, record: Record) -> None:
        for name in record.keys() - {"images"}:
            self._writer.add_scalar(name, record[name], int(record["images"]))

    def close(self) -> None:
        self._writer.close()


class Csv:
    """metrics.csv, one line a record; written anew when a column appears that was not there before."""

    def __init__(self, folder: Path, before: list[Record], config: dict[str, Any]) -> None:
        self._file, self._records = folder / "metrics.csv", list(before)
        self._columns: list[str] = []
        if before:
            self._write_anew()

    def record(self, record: Record) -> None:
        self._records.append(record)
        if record.keys() - set(self._columns):
            self._write_anew()
            return
        with open(self._file, "a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(record)

    def close(self) -> None:
        """Every record is on disk already."""

    def _write_anew(self) -> None:
        self._columns = list(dict.fromkeys(name for record in self._records for name in record))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(self._records)
        write_text(self._file, text.getvalue())


class Wandb:
    """Weights & Biases; offline with WANDB_MODE=offline, for `wandb sync` later. The run keeps its id in the folder."""

    def __init__(self, folder: Path, before: list[Record], config: dict[str, Any]) -> None:
        import wandb

        file = folder / "wandb-id.txt"
        if not file.exists():
            write_text(file, uuid.uuid4().hex)
        self._run = wandb.init(
            project="meanflow", name=folder.name, id=file.read_text(), resume="allow", dir=folder, config=config
        )

    def record(self, record: Record) -> None:
        self._run.log(record, step=int(record["images"]))

    def close(self) -> None:
        self._run.finish()
