"""Training: the loop, its settings, and the folder it keeps."""

from .checkpoint import CheckpointError
from .loop import Run, fit
from .run import load
from .settings import Training

__all__ = ["CheckpointError", "Run", "Training", "fit", "load"]
