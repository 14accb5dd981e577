"""One-step generative modelling with mean flows (arXiv:2505.13447).

t = 0 data, t = 1 noise, 0 <= r <= t <= 1
x data, e noise, z = (1 - t) x + t e, v = e - x, u mean velocity over [r, t]
net(z, t=t, r=r, cond=cond) -> u
"""

from . import _interrupt  # noqa: F401, I001  # first: loading torch takes a second, in which Ctrl-C must be quiet
from . import core, data, evaluation, nets, objectives, training
from .core import (
    AdaptiveWeight,
    CudaGraphSampler,
    EulerField,
    GaussianSource,
    Guidance,
    GuidedField,
    LogitNormal,
    RowSource,
    Times,
    Uniform,
    UniformSource,
    integrate,
    jump,
    mask_from_lengths,
    noise_from_seeds,
    sample,
)
from .doctor import doctor
from .export import export
from .objectives import FlowMatching, MeanFlow
from .training import Training, fit, load

__version__ = "0.1.0"

__all__ = [
    "AdaptiveWeight",
    "CudaGraphSampler",
    "EulerField",
    "FlowMatching",
    "GaussianSource",
    "Guidance",
    "GuidedField",
    "LogitNormal",
    "MeanFlow",
    "RowSource",
    "Times",
    "Training",
    "Uniform",
    "UniformSource",
    "__version__",
    "core",
    "data",
    "doctor",
    "evaluation",
    "export",
    "fit",
    "integrate",
    "jump",
    "load",
    "mask_from_lengths",
    "nets",
    "noise_from_seeds",
    "objectives",
    "sample",
    "training",
]
