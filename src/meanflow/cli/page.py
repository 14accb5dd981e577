"""meanflow page."""

from __future__ import annotations

import webbrowser
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Literal

import tyro

from ..page import page
from ..page.serve import serving
from .words import parse


@dataclass
class Settings:
    """Write a static web page that draws samples of a run in the visitor's browser, and needs no server of its own.

    The folder may be put on any web server; all files are local, and nothing is sent anywhere.
    """

    run: tyro.conf.Positional[Path]
    """Run folder: of images, latents of images, or points of the plane."""
    out: tyro.conf.Positional[Path]
    """Folder for the page; an older page in it is replaced."""
    title: str | None = None
    """Title of the page; the name of the run by default."""
    weights: Literal["fp32", "fp16"] = "fp32"
    """fp16 makes the network's file half as large."""
    webgpu: bool = True
    """Bring the runtime for graphics cards along; --no-webgpu leaves 7 MB away."""
    runtime: Path | None = None
    """onnxruntime-web without a network: its .tgz from `npm pack`, or a folder with it."""
    data: str | None = None
    """Data shown on a page for points of the plane; those of the run, where they are still there, by default."""
    vae: str | None = None
    """Autoencoder of a latent run, where it is no longer at the path of the run's latents."""
    ema: float | str | None = None
    """Decay of the averaged weights to use, the run's first by default; power:0.075 rebuilds one of that length."""
    licence: str = "not stated"
    """What the page says about the licence of the network."""
    serve: bool = False
    """Serve the page on this machine and open it in the browser; ends with Ctrl-C."""
    port: int = 0
    """Port for --serve; 0 takes a free one."""


def run(words: list[str]) -> int:
    """Write the page of a run."""
    s = parse(Settings, words, "page")
    if not 0 <= s.port <= 65535:
        raise ValueError(f"port must lie in 0 to 65535, got {s.port}")
    done = page(
        s.run,
        s.out,
        weights=s.weights,
        runtime=s.runtime,
        webgpu=s.webgpu,
        data=s.data,
        title=s.title,
        vae=s.vae,
        ema=s.ema,
        licence=s.licence,
    )
    print(f"{done.folder}: {done.size / 1e6:.1f} MB; the network differs from torch by {done.difference:.1g} at most")
    if not s.serve:
        print("to look at it: the same command with --serve, or any web server for static files")
        return 0
    with serving(s.out, s.port) as address:
        print(f"{address} (Ctrl-C ends it)", flush=True)
        webbrowser.open(address)
        try:
            Event().wait()
        except KeyboardInterrupt:
            print("ended")
    return 0
