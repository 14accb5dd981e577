"""Judging: protocols, features, distances, and pictures."""

from .distances import Gaussian, frechet_distance, nearest_distances
from .judge import Judge, judge, judge_images
from .pictures import picture, save_picture
from .protocols import PROTOCOLS, Protocol, protocol, protocol_for
from .result import Result
from .small_images import evaluate_digits, table

__all__ = [
    "PROTOCOLS",
    "Gaussian",
    "Judge",
    "Protocol",
    "Result",
    "evaluate_digits",
    "frechet_distance",
    "judge",
    "judge_images",
    "nearest_distances",
    "picture",
    "protocol",
    "protocol_for",
    "save_picture",
    "table",
]
