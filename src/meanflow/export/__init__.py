"""A trained run as one file, ONNX or torch's pt2, that needs nothing of this library."""

from .checking import ExportError
from .export import Exported, export, export_decoder, export_field
from .files import read_about

__all__ = ["ExportError", "Exported", "export", "export_decoder", "export_field", "read_about"]
