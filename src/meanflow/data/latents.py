"""What latents are: the contract that travels with them into the run and the weights, and the check of their scale."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .dataset import Dataset, draw
from .errors import DataError
from .order import mix_seed
from .vae import VAE, load_vae
from .values import LATENT_CHANNELS

# Our choice: in the decoder of Stable Diffusion one activation (256 channels, 256 pixels) of 8 images takes 0.5 GiB.
DECODE_ROWS = 8
CHECK_ROWS = 512  # our choice: quickly read, and at 8 x 8 still 32,768 values a channel
# Our choice. Beyond the outer band lie the scales of Stable Diffusion 1 to XL and of FLUX forgotten or applied twice;
# within the inner one the latents of ordinary photos with the right scale.
ERROR_BAND, QUIET_BAND = (0.4, 2.5), (0.7, 1.4)
# scaling_factor in the configs of these autoencoders
SCALES = {"Stable Diffusion 1 and 2": 0.18215, "SDXL": 0.13025, "Stable Diffusion 3": 1.5305, "FLUX.1": 0.3611}
NEAR = 0.2  # our choice: natural log of a ratio that still counts as the same


@dataclass(frozen=True)
class LatentContract:
    """All that decoding and continuing need to know; latents for a network are (z - shift) * scale.

    vae, vae_kind, vae_fingerprint, channels, downsampling: the autoencoder, see VAE. shift, scale: one number, or one
    a channel (a mean and 1 / std). scaled_by: "config" of the VAE, "measured" or "given". own_scale: the config's.
    crop, size, flip: which images were encoded. posterior: whether standard deviations are stored, so that every draw
    is a new one. count: images. mean, std: measured, per channel, of the latents as a network gets them.
    """

    vae: str
    vae_kind: str
    vae_fingerprint: str
    channels: int
    downsampling: int
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    scaled_by: str
    own_scale: tuple[float, ...] | None
    crop: str
    size: int
    flip: bool
    posterior: bool
    count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> LatentContract:
        """The contract from its JSON; raises DataError for one of another version."""
        names = {field.name for field in fields(cls)}
        if set(saved) != names:
            odd = ", ".join(sorted(names.symmetric_difference(saved)))
            raise DataError(f"this latent contract was written by another version of meanflow (fields: {odd})")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def normalise(self, z: Tensor) -> Tensor:
        """Latents [..., C, h, w] of the VAE as a network gets them."""
        return (z - per_channel(self.shift, z)) * per_channel(self.scale, z)

    def denormalise(self, x: Tensor) -> Tensor:
        """Latents [..., C, h, w] of a network as the VAE gets them."""
        return x / per_channel(self.scale, x) + per_channel(self.shift, x)

    def load_vae(
        self, source: str | Path | None = None, *, device: torch.device | str = "cpu", download: bool = True
    ) -> VAE:
        """The autoencoder of these latents, from where it was or from `source`.

        Raises DataError when it is not there, and naming both when `source` is another one.
        """
        vae = load_vae(self.vae if source is None else source, device=device, download=download)
        if vae.fingerprint != self.vae_fingerprint:
            raise DataError(
                f"these latents were made by the VAE {self.vae} (weights {self.vae_fingerprint[:12]}), "
                f"but {vae.id} has other weights ({vae.fingerprint[:12]}); pass the folder of the first with --vae"
            )
        return vae

    def decode(self, x: Tensor, vae: VAE | None = None) -> Tensor:
        """Images [B, 3, size, size] in [-1, 1], on the CPU, of latents [B, C, h, w] as a network gives them."""
        vae = vae or self.load_vae(device=x.device)
        return _decoded(self.denormalise(x.float()), vae)

    def __str__(self) -> str:
        scale = f"{self.scale[0]:g}" if len(self.scale) == 1 else "one a channel"
        return (
            f"latents of {self.vae} ({self.vae_kind}, weights {self.vae_fingerprint[:12]}), scale {scale} "
            f"({self.scaled_by}), measured std {overall(self.std):.3g}, "
            f"from {self.count:,} images of {self.size} pixels"
        )


def decode_as_configured(x: Tensor, vae: VAE) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1] of latents [B, C, h, w] whose making nobody recorded, scaled as the VAE's own
    config says; DataError when the VAE has other channels."""
    if x.ndim != 4 or x.shape[1] != vae.channels:
        raise DataError(f"{vae.id} decodes latents [B, {vae.channels}, h, w], these samples are {list(x.shape)}")
    x = x.float()
    return _decoded(x / per_channel(vae.scale or (1.0,), x) + per_channel(vae.shift or (0.0,), x), vae)


def _decoded(z: Tensor, vae: VAE) -> Tensor:
    return torch.cat([vae.decode(part).cpu() for part in z.split(DECODE_ROWS)])


def per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    """One number, or one a channel, in the shape that broadcasts over [..., C, h, w]."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)


def overall(std: Sequence[float]) -> float:
    """The root of the mean variance of the channels."""
    return math.sqrt(sum(value**2 for value in std) / len(std))


def check_scale(data: Dataset) -> None:
    """Looks at the standard deviation of latents, which must be about that of the noise, 1.

    Raises DataError for latents with a contract that are far off, with the likely cause; a little off, and arrays
    that look like latents (4, 8, 16 or 32 channels), bring a warning.
    """
    contract: LatentContract | None = getattr(data, "latents", None)
    if contract is None and not (len(data.shape) == 3 and data.shape[0] in LATENT_CHANNELS):
        return
    std = overall(measured_std(data))
    if QUIET_BAND[0] <= std <= QUIET_BAND[1]:
        return
    where = getattr(data, "source", type(data).__name__)
    cause = _cause_of_array(std) if contract is None else _cause(std, contract)
    text = f"{where}: the scaled latents have a standard deviation of {std:.3g}, expected about 1; {cause}"
    if contract is not None and not ERROR_BAND[0] <= std <= ERROR_BAND[1]:
        raise DataError(text)
    warnings.warn(text, stacklevel=3)


def measured_std(data: Dataset) -> list[float]:
    """Standard deviation of each channel over evenly strided samples, drawn as in training."""
    count = min(CHECK_ROWS, len(data))
    index = torch.arange(count) * len(data) // count
    x, _ = draw(data, index, mix_seed(count))
    return x.double().std((0, 2, 3), correction=0).tolist()


def _cause(std: float, contract: LatentContract) -> str:
    """The likely mistake behind the scale of a cache, and the remedy."""
    used = overall(contract.scale)
    fitting = (
        f"{used / std:.4g} would fit. The same `meanflow encode` command with --scale measured (or config) corrects "
        f"the header without encoding again"
    )
    if contract.own_scale is None:
        return f"they were scaled by {used:.5g} ({contract.scaled_by}), {fitting}"
    own = overall(contract.own_scale)
    mistakes = {
        "was forgotten": 1.0,
        "was applied twice": own**2,
        "was divided by instead of multiplied": 1 / own,
    }
    named = [text for text, scale in mistakes.items() if not near(scale, own) and near(used, scale)]
    if named:
        return f"the VAE's own scale {own:.5g} {named[0]}: they were scaled by {used:.5g}, {fitting}"
    if near(used, own):
        return f"the VAE's own scale {own:.5g} does not fit these images: is {contract.vae} the right VAE? {fitting}"
    return f"they were scaled by {used:.5g} ({contract.scaled_by}), the VAE's own scale is {own:.5g}, {fitting}"


def _cause_of_array(std: float) -> str:
    """The likely mistake behind the scale of an array of which nothing else is known."""
    found = [f"the scale {scale} of {name} forgotten?" for name, scale in SCALES.items() if near(std * scale, 1)]
    found += [f"the scale {scale} of {name} applied twice?" for name, scale in SCALES.items() if near(std, scale)]
    return f"{' or '.join(found) or 'are they scaled?'} Multiply them by {1 / std:.4g}"


def near(a: float, b: float) -> bool:
    return abs(math.log(a / b)) < NEAR
