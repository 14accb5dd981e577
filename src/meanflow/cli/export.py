"""meanflow export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from ..export import export
from .words import floats, parse


@dataclass
class Export:
    """Write a run as one file, .onnx or .pt2, that goes from noise to samples and needs nothing of this library.

    It is written only when it computes what torch computes, on random batches of 1 and of 7.
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""
    out: tyro.conf.Positional[Path]
    """File to write: NAME.onnx or NAME.pt2."""
    steps: int | None = None
    """Network calls, all in the one program; 1 by default."""
    times: str | None = None
    """Instead of --steps, decreasing times from 1 to 0, e.g. 1,0.5,0."""
    guidance: str | None = None
    """Guidance scale at sampling time, for runs trained without guidance inside; `input` makes it an input."""
    weights: Literal["fp32", "fp16"] = "fp32"
    """fp16 stores the weights in half the bytes; the arithmetic stays float32."""
    decode: bool = False
    """Put the decoder of a latent run behind the network, so that images come out."""
    vae: str | None = None
    """Autoencoder for --decode, where it is no longer at the path of the run's latents."""
    uint8: bool = False
    """Images as bytes 0 to 255 instead of floats in [-1, 1]."""
    licence: str = "not stated"
    """What the file says about its licence."""
    ema: float | str | None = None
    """Decay of the averaged weights to use, the run's first by default; power:0.075 rebuilds one of that length."""
    raw: bool = False
    """Use the weights without averaging."""


def run(words: list[str]) -> int:
    """Write a run as one file."""
    s = parse(Export, words, "export")
    done = export(
        s.run,
        s.out,
        steps=s.steps,
        times=floats(s.times, "times") if s.times else None,
        guidance=_guidance(s.guidance),
        weights=s.weights,
        decode=s.decode,
        vae=s.vae,
        uint8=s.uint8,
        licence=s.licence,
        ema=s.ema,
        raw=s.raw,
    )
    print(done)
    return 0


def _guidance(text: str | None) -> float | Literal["input"] | None:
    if text is None:
        return None
    return "input" if text == "input" else floats(text, "guidance")[0]
