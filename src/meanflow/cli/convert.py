"""meanflow convert."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from .._hint import did_you_mean
from ..convert import Converted, authors_jax, authors_torch, from_run, save_run
from .words import parse


@dataclass
class FromJax:
    """A run folder from a checkpoint of the authors' JAX code (ImageNet): raw and averaged weights, optimiser, step.

    What the arrays do not tell defaults to the released MF-B/4.
    """

    checkpoint: tyro.conf.Positional[Path]
    """The folder checkpoint_STEP, or one that holds several (the newest is taken)."""
    out: tyro.conf.Positional[Path]
    """Run folder to write."""
    heads: int | None = None
    """Attention heads; by default those of the published size with the same width."""
    size: int = 32
    """Side of the samples: 32 for latents of 256x256 images."""
    w: float = 1.0
    """Guidance that the training used, in the paper's notation."""
    k: float = 0.5
    """The paper's k: the effective scale is w / (1 - k)."""
    decay: float = 0.9999
    """Decay of the averaged weights."""


@dataclass
class FromTorch:
    """A run folder from a checkpoint of the authors' PyTorch code (CIFAR-10), with all averages; no code in it runs."""

    file: tyro.conf.Positional[Path]
    """checkpoint-*.pth."""
    out: tyro.conf.Positional[Path]
    """Run folder to write."""


@dataclass
class ToJax:
    """A checkpoint for the authors' JAX code from a run with a DiT: weights, first average, optimiser, step."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    out: tyro.conf.Positional[Path]
    """Folder in which checkpoint_STEP is written."""


@dataclass
class ToTorch:
    """A checkpoint for the authors' PyTorch code from a run with a U-Net: weights, averages, optimiser, arguments."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    out: tyro.conf.Positional[Path]
    """File to write, e.g. checkpoint-last.pth."""


KINDS: dict[str, Any] = {
    "authors-jax": FromJax,
    "authors-torch": FromTorch,
    "to-authors-jax": ToJax,
    "to-authors-torch": ToTorch,
}


def run(words: list[str]) -> int:
    """Convert a checkpoint of another code, or a run to one."""
    if not words or words[0] in ("-h", "--help"):
        print("\n".join(f"usage: meanflow convert {name} --help   {_first_line(kind)}" for name, kind in KINDS.items()))
        return 0
    if words[0] not in KINDS:
        raise ValueError(f"unknown format {words[0]!r}{did_you_mean(words[0], KINDS)}; known: {', '.join(KINDS)}")
    s = parse(KINDS[words[0]], words[1:], f"convert {words[0]}")
    if isinstance(s, FromJax):
        found = authors_jax.read(s.checkpoint, heads=s.heads, size=s.size, w=s.w, k=s.k, decay=s.decay)
    elif isinstance(s, FromTorch):
        found = authors_torch.read(s.file)
    else:
        write = authors_jax.write if isinstance(s, ToJax) else authors_torch.write
        print(f"written: {write(from_run(s.run), s.out)}")
        return 0
    save_run(found, s.out)
    print(_told(found, s.out))
    return 0


def _told(found: Converted, out: Path) -> str:
    parameters = sum(p.numel() for p in found.net.parameters())
    averages = ", ".join(f"{decay:g}" for decay in found.averages)
    guidance = found.objective.get("guidance")
    lines = [
        f"{out}: {type(found.net).__name__} with {parameters:,} parameters for samples of shape "
        f"{tuple(found.net.shape)}, step {found.step:,}, averages {averages}",  # type: ignore[arg-type]
        f"optimiser state: {'kept' if found.moments else 'not in the file'}",
    ]
    lines += [f"guidance, as told and not read from the file: {guidance}"] if guidance else []
    return "\n".join([*lines, f"Next: meanflow sample {out}"])


def _first_line(kind: Any) -> str:
    return (kind.__doc__ or "").splitlines()[0]
