"""Features behind one interface: images in, vectors out, and a record of what made them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Extractor(Protocol):
    """Images float [N, C, H, W] in [-1, 1] (or vectors [N, D]) to features [N, D].

    name: what it is called in protocols. sha256: hash of its weights, None where it has none. resize: how images
    reach its input. `logits`: features [N, D] to the logits [N, K] of its classes; None where it knows no classes.
    """

    name: str
    sha256: str | None
    resize: str
    costly: bool

    def __call__(self, x: Tensor) -> Tensor: ...

    def logits(self, features: Tensor) -> Tensor | None: ...


class Pixels:
    """The values themselves as features: for tiny images and for vectors."""

    name = "pixels"
    sha256 = None
    resize = "none"
    costly = False

    def __call__(self, x: Tensor) -> Tensor:
        """x [N, *shape] flattened to [N, D], float32 on the CPU."""
        return x.flatten(1).float().cpu()

    def logits(self, features: Tensor) -> Tensor | None:
        """Pixels know no classes."""
        return None
