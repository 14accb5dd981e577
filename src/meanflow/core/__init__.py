"""The mathematics, in torch alone.

t = 0 data, t = 1 noise, 0 <= r <= t <= 1
x data, e noise, z = (1 - t) x + t e, v = e - x, u mean velocity over [r, t]
"""

from .conditions import Cond, Null, null_like
from .derivative import MODES, Mode, Net, predict
from .graphs import CudaGraphSampler
from .guidance import Guidance
from .masks import mask_from_lengths, mask_of, masked
from .path import conditional_velocity, interpolate, like
from .sampling import EulerField, GuidedField, integrate, jump, noise_for, noise_from_seeds, sample
from .source import GaussianSource, RowSource, Source, UniformSource
from .times import LogitNormal, Pairs, Times, Uniform
from .weighting import AdaptiveWeight

__all__ = [
    "MODES",
    "AdaptiveWeight",
    "Cond",
    "CudaGraphSampler",
    "EulerField",
    "GaussianSource",
    "Guidance",
    "GuidedField",
    "LogitNormal",
    "Mode",
    "Net",
    "Null",
    "Pairs",
    "RowSource",
    "Source",
    "Times",
    "Uniform",
    "UniformSource",
    "conditional_velocity",
    "integrate",
    "interpolate",
    "jump",
    "like",
    "mask_from_lengths",
    "mask_of",
    "masked",
    "noise_for",
    "noise_from_seeds",
    "null_like",
    "predict",
    "sample",
]
