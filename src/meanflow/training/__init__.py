"""Training: the loop, its settings, and the folder it keeps."""

from .checkpoint import CheckpointError
from .loop import Run, fit
from .posthoc import PosthocEMA, posthoc_ema
from .run import load
from .settings import Training

__all__ = ["CheckpointError", "PosthocEMA", "Run", "Training", "fit", "load", "posthoc_ema"]
