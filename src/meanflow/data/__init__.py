"""Data: folders, files and tensors behind one small interface, and the order in which they are seen."""

from ..core.conditions import Cond
from .array_files import arrays
from .augment import EDMAugment, augmentation
from .dataset import Dataset
from .described import conditions_of, network_options
from .embedded_digits import digits
from .encode import Encoding, encode, round_trip
from .errors import DataError
from .image_folder import ImageFolder
from .latent_cache import LatentCache
from .latents import LatentContract, check_scale, decode_as_configured
from .order import mix_seed, order
from .prefetch import batches
from .prepared import prepare
from .samples import Samples
from .sequences import Sequences, save_sequences
from .sources import open_data
from .streams import Stream
from .tensors import Tensors
from .vae import VAE, load_vae

__all__ = [
    "VAE",
    "Cond",
    "DataError",
    "Dataset",
    "EDMAugment",
    "Encoding",
    "ImageFolder",
    "LatentCache",
    "LatentContract",
    "Samples",
    "Sequences",
    "Stream",
    "Tensors",
    "arrays",
    "augmentation",
    "batches",
    "check_scale",
    "conditions_of",
    "decode_as_configured",
    "digits",
    "encode",
    "load_vae",
    "mix_seed",
    "network_options",
    "open_data",
    "order",
    "prepare",
    "round_trip",
    "save_sequences",
]
