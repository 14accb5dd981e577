"""A run as an HTTP service: seeds and labels in, pictures or arrays out."""

from .app import Limits, create_app
from .batching import Batcher, Job
from .generator import Generator

__all__ = ["Batcher", "Generator", "Job", "Limits", "create_app"]
