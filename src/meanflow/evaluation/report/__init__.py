"""Reports: what a careful reader asks for next to a figure, as one page, one table and one JSON."""

from .compare import Comparison, compare, comparison_record, comparison_text, write_comparison
from .page import Section
from .subject import LeftOut, Subject
from .tables import RESAMPLES, Row, markdown_table, text_table
from .write import Report, calls_figure, rows_as_json, write_report

__all__ = [
    "RESAMPLES",
    "Comparison",
    "LeftOut",
    "Report",
    "Row",
    "Section",
    "Subject",
    "calls_figure",
    "compare",
    "comparison_record",
    "comparison_text",
    "markdown_table",
    "rows_as_json",
    "text_table",
    "write_comparison",
    "write_report",
]
