"""Judging: distances, classifiers, pictures."""

from .distances import Gaussian, frechet_distance, nearest_distances
from .heat import heat_map
from .one_call import OneCall, one_call
from .pictures import picture, save_picture
from .schedule import Schedule, search_times
from .small_images import evaluate_digits, table

__all__ = [
    "Gaussian",
    "OneCall",
    "Schedule",
    "evaluate_digits",
    "frechet_distance",
    "heat_map",
    "nearest_distances",
    "one_call",
    "picture",
    "save_picture",
    "search_times",
    "table",
]
