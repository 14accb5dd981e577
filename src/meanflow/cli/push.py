"""meanflow push."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from ..hub import push, write_folder
from .words import parse


@dataclass
class Push:
    """Publish a run on the Hugging Face hub: weights, config, a model card written from the run, a grid.

    Others load it with mf.load("user/name") and `meanflow sample user/name`; nothing in it is executed.
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""
    name: tyro.conf.Positional[str]
    """Name on the hub, user/name."""
    licence: str
    """Licence of the weights, an identifier of the hub such as apache-2.0, mit, cc-by-4.0 or other."""
    folder: Path | None = None
    """Write the folder there and upload nothing."""
    private: bool = False
    """A new model on the hub is seen by you alone."""
    ema: float | str | None = None
    """Decay of the averaged weights to publish, the run's first by default; power:0.075 rebuilds one of that length."""
    raw: bool = False
    """Publish the weights without averaging."""
    vae: str | None = None
    """Autoencoder of a latent run, where it is no longer at the path of the run's latents."""
    diffusers: bool = False
    """Also a pipeline that diffusers loads (through meanflow, which must be installed there)."""


def run(words: list[str]) -> int:
    """Publish a run, or write what would be published."""
    s = parse(Push, words, "push")
    how = {"licence": s.licence, "ema": s.ema, "raw": s.raw, "vae": s.vae, "diffusers": s.diffusers}
    if s.folder is None:
        print(push(s.run, s.name, private=s.private, **how))
    else:
        print(f"{write_folder(s.run, s.folder, name=s.name, **how)} holds what push would upload")
    return 0
