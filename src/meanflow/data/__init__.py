"""Data: folders, files and tensors behind one small interface, and the order in which they are seen."""

from ..core.conditions import Cond
from .array_files import arrays
from .augment import EDMAugment, augmentation
from .dataset import Dataset
from .embedded_digits import digits
from .errors import DataError
from .image_folder import ImageFolder
from .order import mix_seed, order
from .prefetch import batches
from .sources import open_data
from .tensors import Tensors

__all__ = [
    "Cond",
    "DataError",
    "Dataset",
    "EDMAugment",
    "ImageFolder",
    "Tensors",
    "arrays",
    "augmentation",
    "batches",
    "digits",
    "mix_seed",
    "open_data",
    "order",
]
