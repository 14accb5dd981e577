"""meanflow export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from ..data.files import whole_folder
from ..export import export
from ..training import load
from .words import floats, parse


@dataclass
class Export:
    """Write a run as one file, .onnx or .pt2, that goes from noise to samples and needs nothing of this library.

    It is written only when it computes what torch computes, on random batches of 1 and of 7.
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""
    out: tyro.conf.Positional[Path]
    """File to write: NAME.onnx or NAME.pt2; with --diffusers a folder."""
    diffusers: bool = False
    """Write a pipeline that diffusers loads, with the autoencoder of a latent run; of the options only --ema, --raw and
    --vae are for it."""
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
    if s.diffusers:
        return _pipeline(s)
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


def _pipeline(s: Export) -> int:
    if s != Export(s.run, s.out, diffusers=True, ema=s.ema, raw=s.raw, vae=s.vae):
        raise ValueError("--diffusers takes --ema, --raw and --vae; calls and labels are chosen when the pipeline runs")
    try:
        from ..hub.pipeline import save_pipeline
    except ModuleNotFoundError as error:
        raise ValueError(f"--diffusers needs {error.name}; install it with pip install 'meanflow[latent]'") from error
    with whole_folder(s.out) as aside:
        save_pipeline(load(s.run, ema=s.ema, raw=s.raw), aside, s.vae)
    print(f"{s.out}: MeanFlowPipeline.from_pretrained({str(s.out)!r}) of meanflow.hub.pipeline loads it")
    return 0


def _guidance(text: str | None) -> float | Literal["input"] | None:
    if text is None:
        return None
    return "input" if text == "input" else floats(text, "guidance")[0]
