"""Judging: distances, classifiers, pictures."""

from .distances import Gaussian, frechet_distance, nearest_distances
from .pictures import picture, save_picture
from .small_images import evaluate_digits, table

__all__ = [
    "Gaussian",
    "evaluate_digits",
    "frechet_distance",
    "nearest_distances",
    "picture",
    "save_picture",
    "table",
]
