"""A run as a static web page that draws samples in the visitor's browser."""

from .build import Page, page
from .runtime import RUNTIME, find_runtime

__all__ = ["RUNTIME", "Page", "find_runtime", "page"]
