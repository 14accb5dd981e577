"""The folder that is published: weights, config, card, grid, and a pipeline of diffusers on request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..core.sampling import noise_for, sample
from ..data.files import whole_folder
from ..evaluation.pictures import drawable, picture, save_picture
from ..training import load
from ..training.published import MODEL, find
from ..training.run import read_config
from ..training.subjects import images_seen
from .card import model_card

GRID = "grid.png"
GRID_ROWS = 4  # samples of each class in the grid; our choice


def write_folder(
    run: Path,
    out: Path,
    *,
    name: str,
    licence: str,
    ema: float | str | None = None,
    raw: bool = False,
    vae: str | None = None,
    diffusers: bool = False,
) -> Path:
    """Write what `push` uploads to the folder `out`: it is complete, or not there.

    name: what the card tells people to load. licence: identifier such as apache-2.0. diffusers: also a pipeline that
    diffusers loads. Raises ValueError when `out` exists and is no empty folder.
    """
    with whole_folder(out) as aside:
        _fill(aside, find(run), name, licence, ema, raw, vae, diffusers)
    return out


def _fill(
    folder: Path,
    run: Path,
    name: str,
    licence: str,
    ema: float | str | None,
    raw: bool,
    vae: str | None,
    diffusers: bool,
) -> None:
    net, config = load(run, ema=ema, raw=raw), read_config(run)
    weights = "raw" if raw else f"EMA {ema if ema is not None else config['training']['ema'][0]}"
    published = {"weights": weights, "images": images_seen(run, ema) or config["training"]["images"]}
    config = config | {"published": config.get("published") or published}
    inner: Any = net.net if config["objective"]["type"] == "FlowMatching" else net
    save_file({k: v.contiguous() for k, v in inner.state_dict().items()}, folder / MODEL, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    has_grid = _grid(net, folder / GRID, vae)
    report = run / "report" / "report.md"
    judged = report.read_text("utf-8") if report.is_file() else None
    text = model_card(config, name=name, licence=licence, grid=GRID if has_grid else None, report=judged)
    (folder / "README.md").write_text(text, encoding="utf-8")
    if diffusers:
        from .pipeline import save_pipeline

        save_pipeline(net, folder, vae)


def _grid(net: torch.nn.Module, file: Path, vae: str | None) -> bool:
    """One call each, one column a class (the first ten of many); False where samples cannot be drawn."""
    contract: Any = net.latents
    classes = min(net.null, 10) if isinstance(net.null, int) else None
    if net.null is not None and classes is None:
        return False
    seeds = range(GRID_ROWS * (classes or 8))
    labels = None if classes is None else torch.tensor([seed % classes for seed in seeds])
    x = sample(net, noise_for(net, seeds, cond=labels), labels)
    if contract is not None:
        x = contract.decode(x, contract.load_vae(vae))
    if not drawable(tuple(x.shape[1:])):
        return False
    save_picture(picture(x, classes or 8), file)
    return True
