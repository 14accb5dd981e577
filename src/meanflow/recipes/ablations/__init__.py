"""The ablations of the paper's table 1, repeated at a small scale."""

from .figure import figure
from .report import markdown, summary
from .study import default_workers, finished_of, plan, run_all
from .subjects import open_subject
from .table1 import TABLES, tables

__all__ = [
    "TABLES",
    "default_workers",
    "figure",
    "finished_of",
    "markdown",
    "open_subject",
    "plan",
    "run_all",
    "summary",
    "tables",
]
