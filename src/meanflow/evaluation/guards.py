"""Guards: what a figure must pass before it is believed.

Every guard has a name. One that fires raises Refused, which says what came and what to do; `allow` lets it pass, and
the result then says so wherever it is printed.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .distances import FrechetTo, Gaussian

NAMES = (
    "range",
    "finite",
    "shape",
    "small",
    "duplicates",
    "format",
    "blocks",
    "detail",
    "reference",
    "floor",
    "belief",
)
BLOCK = 8  # pixels; JPEG, ITU T.81
# All thresholds are our choice; in brackets what was measured on real images, over the same of the reference.
DARK = -0.05  # values below: a share of them in the reference but none in the samples is a missing half of the range
OUTSIDE = 1.5  # images from files have values beyond this only where they are of another range
MOST_OUTSIDE = 0.1
MOST_DUPLICATES = 0.01
MOST_BLOCKS = 1.04  # steps at the borders of 8x8 blocks against those beside [0.98 to 1.00; JPEG 75: 1.06 to 1.07]
DETAIL = (0.67, 1.5)  # energy of the finest differences [0.97 to 1.07; antialiased bilinear for Lanczos: 0.55]
IDENTITY = 1e-6  # of the total variance
MOST_FLOOR = 0.25  # of the total variance: two parts of one data set are nearer than that
LEAST_OF_FLOOR = 0.2  # a perfect generator of 10,000 against 5,000 images has 0.375 of the floor of two halves


class Refused(ValueError):
    """A result that is not believed, with the reason; `guard` is the name of the guard."""

    def __init__(self, guard: str, reason: str, allowable: bool = True) -> None:
        super().__init__(guard, reason, allowable)  # all of them, so that it travels between processes
        self.guard, self.reason, self.allowable = guard, reason, allowable

    def __str__(self) -> str:
        way = f". To have the figure all the same: allow={self.guard!r}" if self.allowable else ""
        return f"refused by the guard {self.guard!r}: {self.reason}{way}"


class Guards:
    """The guards with those that are told to let pass; `fired` are those of them that would have refused."""

    def __init__(self, allow: Collection[str] = ()) -> None:
        allow = (allow,) if isinstance(allow, str) else tuple(allow)
        if unknown := [name for name in allow if name not in NAMES]:
            raise ValueError(f"there is no guard {unknown[0]!r}; there are {', '.join(NAMES)}")
        self.allow, self.fired = allow, set[str]()

    def refuse(self, guard: str, reason: str) -> None:
        """Raise Refused, unless this guard lets pass."""
        if guard not in self.allow:
            raise Refused(guard, reason)
        self.fired.add(guard)


@dataclass(frozen=True)
class Look:
    """Sums over the values of images, which add up over batches and processes."""

    values: int = 0
    bad: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    dark: int = 0
    outside: int = 0
    fine: float = 0.0
    rows: int = 0
    at_blocks: float = 0.0
    beside_blocks: float = 0.0

    @classmethod
    def at(cls, x: Tensor) -> Look:
        """A look at samples [N, *shape]; for images [N, C, H, W] also at their finest differences."""
        x = x.float()
        good = x.isfinite()
        x = x.nan_to_num(0, 0, 0)
        fine, at_blocks, beside = _differences(x) if x.ndim == 4 and min(x.shape[-2:]) >= 3 else (0.0, 0.0, 0.0)
        return cls(
            values=x.numel(),
            bad=int((~good).sum()),
            lowest=float(x.min()),
            highest=float(x.max()),
            dark=int((x < DARK).sum()),
            outside=int((x.abs() > OUTSIDE).sum()),
            fine=fine,
            rows=len(x),
            at_blocks=at_blocks,
            beside_blocks=beside,
        )

    def __add__(self, other: Look) -> Look:
        a, b = asdict(self), asdict(other)
        sums = {f.name: a[f.name] + b[f.name] for f in fields(self)}
        lowest, highest = min(a["lowest"], b["lowest"]), max(a["highest"], b["highest"])
        return Look(**{**sums, "lowest": lowest, "highest": highest})

    @classmethod
    def total(cls, parts: Iterable[Look]) -> Look:
        """All parts together."""
        return sum(parts, cls())


def _differences(x: Tensor) -> tuple[float, float, float]:
    """Sum over images of the mean squared second difference; mean steps at and beside borders of blocks."""
    second = x[..., 2:] - 2 * x[..., 1:-1] + x[..., :-2]
    fine = float(second.double().square().mean((1, 2, 3)).sum())
    if min(x.shape[-2:]) < 2 * BLOCK:
        return fine, 0.0, 0.0
    at = beside = 0.0
    for axis in (2, 3):
        steps = x.diff(dim=axis).abs().double().mean((1, 5 - axis)).sum(0)  # [side - 1]
        border = torch.arange(BLOCK - 1, len(steps) - 1, BLOCK)
        at += float(steps[border].mean())
        beside += float((steps[border - 1] + steps[border + 1]).mean() / 2)
    return fine, at, beside


def check_finite(guards: Guards, look: Look) -> None:
    """No NaN and no Inf."""
    if look.bad:
        guards.refuse(
            "finite",
            f"{look.bad:,} of {look.values:,} values of the samples are NaN or Inf; look at the weights, the precision "
            "and the number of calls",
        )


def check_values(
    guards: Guards,
    look: Look,
    reference: Look | None,
    value_range: tuple[float, float] | None,
    *,
    from_files: bool = False,
) -> None:
    """Values of [-1, 1] where samples are images; a poor network may leave that range, images from files may not."""
    if value_range is None:
        return
    extent = f"the samples lie in [{look.lowest:.3g}, {look.highest:.3g}]"
    bytes_as_floats = look.lowest >= 0 and look.highest > 2
    if bytes_as_floats or (from_files and look.outside > MOST_OUTSIDE * look.values):
        hint = (
            "this looks like 0..255 given as floats: pass uint8, or x / 127.5 - 1" if bytes_as_floats else "scale them"
        )
        guards.refuse("range", f"{extent}, images in [-1, 1] are wanted; {hint}")
    if reference is not None and look.dark == 0 and reference.dark > 0.1 * reference.values:
        guards.refuse(
            "range",
            f"{extent}, and {reference.dark / reference.values:.0%} of the values of the reference are below {DARK}; "
            "this looks like [0, 1] given as [-1, 1]: pass x * 2 - 1",
        )


def check_unit_range(x: Tensor) -> None:
    """Refused for floats said to be in [0, 1] that are not; [-1, 1] given as [0, 1] is the commonest mistake."""
    low, high = float(x.min()), float(x.max())
    if low < -1e-3 or high > 1 + 1e-3:
        what = "[-1, 1]" if low >= -1.001 and high <= 1.001 else "neither [0, 1] nor [-1, 1]"
        reason = f"images look like {what} (min {low:.3g}, max {high:.3g}); said to be in [0, 1]"
        raise Refused("range", reason, allowable=False)


def check_shape(came: tuple[int, ...], wanted: tuple[int, ...] | None, resize: str) -> None:
    """Samples have the shape of the protocol: nothing is resized on the way but by the extractor's own filter."""
    if wanted is not None and tuple(came) != tuple(wanted):
        way = "no filter" if resize == "none" else f"the filter {resize} inside the features"
        raise Refused(
            "shape",
            f"samples have shape {tuple(came)}, the protocol wants {tuple(wanted)} and knows {way}; an image that was "
            "resized with another filter has another distance, so choose the protocol of this size",
            allowable=False,
        )


def check_number(guards: Guards, n: int, dimensions: int, usual: int) -> None:
    """More samples than dimensions: with fewer the covariance is singular and the distance mostly its error."""
    if n <= dimensions:
        guards.refuse(
            "small",
            f"{n:,} samples for {dimensions:,} features make a singular covariance, and the distance is mostly its "
            f"error; the protocol has {usual:,} samples. Draw more, or compare by kid, which has no such bias",
        )


def digests(x: Tensor) -> list[bytes]:
    """Eight bytes a sample that differ when the samples differ."""
    rows = x.contiguous().flatten(1).numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]


def check_duplicates(guards: Guards, found: list[bytes]) -> None:
    """Samples from different seeds differ."""
    counts = Counter(found)
    repeated = len(found) - len(counts)
    if repeated <= MOST_DUPLICATES * len(found):
        return
    most = counts.most_common(1)[0][0]
    first = [i for i, digest in enumerate(found) if digest == most][:2]
    guards.refuse(
        "duplicates",
        f"{repeated:,} of {len(found):,} samples repeat another one bit for bit (numbers {first[0]:,} and {first[1]:,} "
        "do); processes that share a seed draw the same samples: give each its own seeds. Or the network ignores its "
        "noise",
    )


def check_folder(guards: Guards, files: list[Path]) -> None:
    """Files of samples are lossless: what JPEG takes away, the features see."""
    lossy = [path for path in files if _lossy(path)]
    if lossy:
        guards.refuse(
            "format",
            f"{len(lossy)} of {len(files)} files are lossy, the first is {lossy[0]}; compression alone moves the "
            "distance. Save samples as PNG, or uint8 in .npz",
        )


def _lossy(path: Path) -> bool:
    with Image.open(path) as image:
        return image.format in ("JPEG", "MPO", "JPEG2000") or (image.format == "WEBP" and b"VP8 " in _head(path))


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(64)


def check_texture(guards: Guards, look: Look, reference: Look) -> None:
    """Images from files have the fine structure of the reference: no blocks of JPEG, no other resize filter."""
    if look.rows == 0 or reference.rows == 0 or not reference.fine:
        return
    detail = (look.fine / look.rows) / (reference.fine / reference.rows)
    if not DETAIL[0] <= detail <= DETAIL[1]:
        guards.refuse(
            "detail",
            f"the finest differences have {detail:.2f} times the energy that they have in the reference; images that "
            f"were resized with another filter look so ({'smoother' if detail < 1 else 'sharper or noisier'}). Prepare "
            "both with the same filter",
        )
    if reference.beside_blocks and look.beside_blocks:
        blocks = look.at_blocks / look.beside_blocks / (reference.at_blocks / reference.beside_blocks)
        if blocks > MOST_BLOCKS:
            guards.refuse(
                "blocks",
                f"steps between pixels are {blocks:.2f} times as large at borders of 8x8 blocks as beside them, next "
                "to the reference; the images look as if they had been through JPEG. Save samples as PNG",
            )


def check_reference(guards: Guards, distance: FrechetTo) -> None:
    """The distance of the reference to itself is zero up to rounding."""
    itself, spread = distance(distance.reference), _spread(distance.reference)
    if not abs(itself) <= IDENTITY * spread:
        guards.refuse(
            "reference",
            f"the distance of the reference to itself is {itself:.3g}, total variance {spread:.3g}; its statistics are "
            "damaged, e.g. a covariance that is not symmetric or not positive",
        )


def check_floor(guards: Guards, floor: float, gaussian: Gaussian) -> None:
    """Real images are near real images."""
    if not floor <= MOST_FLOOR * _spread(gaussian):
        guards.refuse(
            "floor",
            f"real images in place of samples have the distance {floor:.4g}, more than {MOST_FLOOR:.0%} of the total "
            f"variance {_spread(gaussian):.4g}; the two parts of the data were not prepared alike (range, resize, "
            "classes), or are too few",
        )


def check_belief(guards: Guards, metrics: dict[str, float], floor: float | None, gaussian: Gaussian) -> None:
    """No NaN, no negative distance, and nothing far nearer to the reference than real images are."""
    if strange := [name for name, value in metrics.items() if not math.isfinite(value)]:
        guards.refuse("finite", f"{strange[0]} is {metrics[strange[0]]}")
    distance = metrics.get("frechet")
    if distance is None:
        return
    if distance < -IDENTITY * _spread(gaussian):
        guards.refuse(
            "belief", f"the distance is {distance:.4g}, and distances are not negative; a covariance is damaged"
        )
    if floor is not None and distance < LEAST_OF_FLOOR * floor:
        guards.refuse(
            "belief",
            f"the distance {distance:.4g} is far below the floor {floor:.4g}, which real images reach; are the samples "
            "images of the reference itself?",
        )


def _spread(gaussian: Gaussian) -> float:
    return float(gaussian.covariance.trace())
