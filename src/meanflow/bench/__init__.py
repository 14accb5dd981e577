"""Counting and timing what training and sampling cost."""

from .authors import authors_loss
from .cost import flops, peak_bytes, ratio, times
from .sampling import price_sampling, sampling_table
from .step import StepSettings, price_step, step_table

__all__ = [
    "StepSettings",
    "authors_loss",
    "flops",
    "peak_bytes",
    "price_sampling",
    "price_step",
    "ratio",
    "sampling_table",
    "step_table",
    "times",
]
