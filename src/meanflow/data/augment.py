"""Random changes of images that leave their meaning; what was done can be told to the network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.conditions import Cond, augmented

Name = Literal["none", "flip", "edm"]
Augmentation: TypeAlias = Callable[[Tensor, Cond, torch.Generator], tuple[Tensor, Cond]]

# Low-pass filter of the symlet wavelet sym6 (Daubechies, "Ten Lectures on Wavelets", table 8.3). Enlarging by two and
# reducing by two with it is the identity.
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
_DELAY = (len(SYM6) - 1) / 2


@dataclass(frozen=True)
class EDMAugment:
    """The augmentation of EDM without vertical flips and rotations, as in the authors' CIFAR-10 code.

    Every image is mirrored with probability 1/2; scaling, stretching along a random axis and shifting happen with
    probability p each. The label [B, 6] says what was done: mirrored, log2 of the scale, stretch along x and y, shift
    along x and y, each in units of its standard deviation; zero is an image that was left alone.
    Source: arXiv:2206.00364, appendix F.2 and table 6.
    """

    p: float = 0.12
    scale_std: float = 0.2
    stretch_std: float = 0.2
    shift_std: float = 0.125
    features: int = 6

    def __call__(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] to changed images of the same shape and labels [B, 6]."""
        mirrored = self._uniform(x, generator) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        scale = self._sometimes(self._normal(x, generator), x, generator)
        stretch = self._sometimes(self._normal(x, generator), x, generator)
        angle = (2 * self._uniform(x, generator) - 1) * math.pi
        angle = torch.where(self._uniform(x, generator) < self.p / 2, angle, torch.zeros_like(angle))
        shift = torch.stack([self._normal(x, generator), self._normal(x, generator)], 1)
        shift = shift * (self._uniform(x, generator) < self.p)[:, None]
        size = torch.tensor([x.shape[3], x.shape[2]], device=x.device)
        back = inverse_map(
            torch.exp2(scale * self.scale_std),
            torch.exp2(stretch * self.stretch_std),
            angle,
            shift * self.shift_std * size,
        )
        labels = torch.stack(
            [mirrored.float(), scale, stretch * angle.cos(), stretch * angle.sin(), shift[:, 0], shift[:, 1]], 1
        )
        return resample(x, back), labels

    def _sometimes(self, value: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
        return value * (self._uniform(x, generator) < self.p)

    def _normal(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn(len(x), generator=generator, device=x.device)

    def _uniform(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return torch.rand(len(x), generator=generator, device=x.device)


def inverse_map(scale: Tensor, stretch: Tensor, angle: Tensor, shift: Tensor) -> Tensor:
    """Maps [B, 2, 3] from pixels (x, y, 1) of the changed image to the original, both from the centre.

    scale, stretch, angle [B]; shift [B, 2] in pixels. Stretched by `stretch` along `angle`, by its inverse across.
    """
    c, s, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turn = torch.stack([torch.stack([c, s], 1), torch.stack([-s, c], 1)], 1)
    narrow = torch.stack([torch.stack([1 / stretch, zero], 1), torch.stack([zero, stretch], 1)], 1)
    linear = turn @ narrow @ turn.mT / scale[:, None, None]
    return torch.cat([linear, -linear @ shift[:, :, None]], 2)


def resample(x: Tensor, back: Tensor) -> Tensor:
    """Images [B, C, H, W] whose pixel p shows what `back` [B, 2, 3] maps p to; mirrored beyond the border.

    Bilinear in images enlarged by two, so that fine detail survives; an identity map changes nothing.
    """
    h, w = x.shape[2:]
    pad = [min(n - 1, max(6, n // 2)) for n in (h, w)]
    wide = _enlarge(F.pad(x, (pad[1], pad[1], pad[0], pad[0]), mode="reflect"))
    # Sample n of an enlarged line shows place (n - delay) / 2 of the line that it was made from.
    ys, xs = (torch.arange(2 * n + len(SYM6) - 2, device=x.device) / 2 - _DELAY / 2 - (n - 1) / 2 for n in (h, w))
    points = torch.stack([xs.expand(len(ys), -1), ys[:, None].expand(-1, len(xs)), xs.new_ones(len(ys), len(xs))], -1)
    places = torch.einsum("bij,hwj->bhwi", back, points)  # [B, H', W', 2], pixels from the centre
    n = torch.tensor([w, h], device=x.device)
    at = 2 * (places + (n - 1) / 2 + torch.tensor(pad[::-1], device=x.device)) + _DELAY
    grid = 2 * at / (torch.tensor(wide.shape[:1:-1], device=x.device) - 1) - 1
    return _reduce(F.grid_sample(wide, grid.to(x.dtype), padding_mode="reflection", align_corners=True))


def augmentation(name: Name) -> Augmentation:
    """The augmentation of a name: "none", "flip" (mirrored with probability 1/2), or "edm", which adds its label."""
    if name == "none":
        return lambda x, cond, generator: (x, cond)
    if name == "flip":
        return _flip
    if name != "edm":
        raise ValueError(f"augment must be none, flip or edm, got {name!r}")
    edm = EDMAugment()

    def change(x: Tensor, cond: Cond, generator: torch.Generator) -> tuple[Tensor, Cond]:
        x, labels = edm(x, generator)
        return x, augmented(cond, labels)

    return change


def _flip(x: Tensor, cond: Cond, generator: torch.Generator) -> tuple[Tensor, Cond]:
    mirrored = torch.rand(len(x), generator=generator, device=x.device) < 0.5
    return torch.where(mirrored.reshape(-1, *[1] * (x.ndim - 1)), x.flip(-1), x), cond


def _enlarge(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, 2 H + 10, 2 W + 10]."""
    c = x.shape[1]
    row = torch.tensor(SYM6, dtype=x.dtype, device=x.device).expand(c, 1, 1, -1)
    x = F.conv_transpose2d(x, row, stride=(1, 2), groups=c)
    return F.conv_transpose2d(x, row.mT, stride=(2, 1), groups=c)


def _reduce(x: Tensor) -> Tensor:
    """The transpose of _enlarge, which is also its inverse."""
    c = x.shape[1]
    row = torch.tensor(SYM6, dtype=x.dtype, device=x.device).expand(c, 1, 1, -1)
    return F.conv2d(F.conv2d(x, row, stride=(1, 2), groups=c), row.mT, stride=(2, 1), groups=c)
