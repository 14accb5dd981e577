"""The folder of a page: hand-written files, the network as ONNX, the runtime, and what the page knows of the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from ..data import Dataset, open_data
from ..data.files import whole_folder
from ..export import export_decoder, export_field
from ..export.export import NORMAL, Weights
from ..training.run import read_config
from ..training.subjects import run_data
from .runtime import RUNTIME, find_runtime, packed

ABOUT = "run.json"
WRITTEN = {ABOUT, "runtime", "field.onnx", "decoder.onnx"}  # beside the assets; what else a folder holds is not ours
POINTS = 1000  # data points that a page for the plane shows; our choice


@dataclass(frozen=True)
class Page:
    """What was written: the folder, its bytes, and the largest difference of the network to torch."""

    folder: Path
    size: int
    difference: float


def page(
    run: str | Path,
    out: str | Path,
    *,
    weights: Weights = "fp32",
    runtime: Path | None = None,
    webgpu: bool = True,
    data: Any = None,
    title: str | None = None,
    vae: str | Path | None = None,
    ema: float | str | None = None,
    class_names: Sequence[str] | None = None,
    licence: str = "not stated",
) -> Page:
    """Write a static web page that runs the network of a run in the visitor's browser.

    runtime: where onnxruntime-web is, see find_runtime. webgpu: whether the runtime for graphics cards comes along.
    data: what a page for points of the plane shows as data, as `fit` takes it; None takes that of the run where it can
    be opened. Raises ValueError for samples that no page can show, and for a folder that holds something else.
    """
    run, out = Path(run), Path(out)
    config = read_config(run)
    shape = _showable(run, config)
    _check_folder(out)
    kinds = ["wasm", *(["webgpu"] if webgpu else [])]
    files = find_runtime(runtime)
    with whole_folder(out, replace=True) as aside:
        (aside / "runtime").mkdir()
        done = export_field(
            run, aside / "field.onnx", weights=weights, ema=ema, class_names=class_names, licence=licence
        )
        if done.about["noise"] != NORMAL:
            raise ValueError("pages draw standard normal noise, and this run starts from another source")
        if "condition" in done.about["inputs"]:
            raise ValueError("pages show class labels only, and this run was trained with condition vectors")
        decoder = export_decoder(run, aside / "decoder.onnx", vae=vae).about if config["data"].get("latents") else None
        _copy(aside, files, kinds)
        about = _about(run, config, done.about, kinds, title)
        if decoder is not None:
            about["decoder"] = {"shape": _decoded_shape(config, shape)}
        if len(shape) == 1:
            about |= _plane(open_data(data) if data is not None else run_data(config)[0])
        (aside / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
    return Page(out, sum(f.stat().st_size for f in out.rglob("*") if f.is_file()), max(done.differences.values()))


def _showable(run: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """The shape of a sample, if a page can show it."""
    shape = tuple(config["net"].get("arguments", {}).get("shape", ()))
    if not shape:
        raise ValueError(f"{run} was trained with a network of your own; pages are for the networks of this library")
    picture = len(shape) == 3 and (shape[0] in (1, 3) or config["data"].get("latents"))
    if not picture and shape != (2,):
        raise ValueError(
            f"pages show images, latents of images and points of the plane; samples here are {list(shape)}"
        )
    return shape


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; a page is a folder")
    known = {asset.name for asset in resources.files(__package__).joinpath("assets").iterdir()} | WRITTEN
    others = sorted(path.name for path in out.iterdir() if path.name not in known) if out.exists() else []
    if others:
        raise ValueError(f"{out} holds something that is no page ({others[0]}); choose another folder, or move it away")


def _copy(aside: Path, runtime: Path, kinds: list[str]) -> None:
    for asset in resources.files(__package__).joinpath("assets").iterdir():
        (aside / asset.name).write_bytes(asset.read_bytes())
    for name in (packed(name) for kind in kinds for name in RUNTIME[kind]):
        shutil.copyfile(runtime / name, aside / "runtime" / name)
    if (runtime / "NOTICE.txt").is_file():
        shutil.copyfile(runtime / "NOTICE.txt", aside / "runtime" / "NOTICE.txt")


def _about(
    run: Path, config: dict[str, Any], exported: dict[str, Any], kinds: list[str], title: str | None
) -> dict[str, Any]:
    name = exported["run"]
    parameters = config["net"]["parameters"]
    return {
        "title": title or name,
        "run": name,
        "shape": exported["shape"],
        "classes": exported["classes"],
        "class_names": exported["class_names"],
        "runtimes": kinds,
        "decoder": None,
        "line": f"{name}: {config['net']['type']} with {parameters:,} parameters, trained by "
        f"{config['objective']['type']}; written by meanflow {exported['meanflow']}; licence: {exported['licence']}.",
    }


def _decoded_shape(config: dict[str, Any], shape: tuple[int, ...]) -> list[int]:
    factor = config["data"]["latents"]["downsampling"]
    return [3, shape[1] * factor, shape[2] * factor]


def _plane(data: Dataset | None) -> dict[str, Any]:
    """Points of the data in one row, and how far the plane reaches: to all noise and nearly all data."""
    if data is None or tuple(data.shape) != (2,):
        return {"data": None, "reach": 3.5}
    x = data.batch(list(range(min(POINTS, len(data)))))[0]
    reach = max(3.5, 1.15 * float(torch.quantile(x.abs(), 0.99)))
    return {"data": [round(v, 3) for v in x.flatten().tolist()], "reach": reach}
