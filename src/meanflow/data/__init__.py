"""Data: folders, files and tensors behind one small interface, and the order in which they are seen."""

from ..core.conditions import Cond
from .array_files import arrays
from .dataset import Dataset
from .embedded_digits import digits
from .errors import DataError
from .image_folder import ImageFolder
from .order import mix_seed, order
from .prefetch import batches
from .prepared import prepare
from .samples import Samples
from .sources import open_data
from .streams import Stream
from .tensors import Tensors

__all__ = [
    "Cond",
    "DataError",
    "Dataset",
    "ImageFolder",
    "Samples",
    "Stream",
    "Tensors",
    "arrays",
    "batches",
    "digits",
    "mix_seed",
    "open_data",
    "order",
    "prepare",
]
