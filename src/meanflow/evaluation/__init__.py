"""Judging: protocols, features, distances, and pictures."""

from .distances import Gaussian, frechet_distance, nearest_distances
from .heat import heat_map
from .judge import Judge, judge, judge_images
from .one_call import OneCall, one_call
from .pictures import picture, save_picture
from .protocols import PROTOCOLS, Protocol, protocol, protocol_for
from .result import Result
from .schedule import Schedule, search_times

__all__ = [
    "PROTOCOLS",
    "Gaussian",
    "Judge",
    "OneCall",
    "Protocol",
    "Result",
    "Schedule",
    "frechet_distance",
    "heat_map",
    "judge",
    "judge_images",
    "nearest_distances",
    "one_call",
    "picture",
    "protocol",
    "protocol_for",
    "save_picture",
    "search_times",
]
