"""The files and runs that the pages in docs/ speak of, as small as they can be."""

import gzip
import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from autoencoders import tiny_vae
from meanflow.cli import main


def build(folder: Path) -> Path:
    """Fill an empty folder."""
    images = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)
    _people(folder / "people.zip", images)
    _fashion(folder / "fashion-mnist")
    for i, image in enumerate(images):
        file = folder / "my-images" / ("cats", "dogs")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    tiny_vae(folder / "vae")
    digits = folder / "runs" / "digits"
    _run("train", "digits", "--images", 2560, "--lr", "2e-3", "--ema", "0.9", "--out", digits)
    shutil.copytree(digits, folder / "runs" / "ablations" / "base" / "seed-0")
    _run("export", digits, folder / "digits.onnx")
    _run("encode", folder / "my-images", folder / "latents", "--vae", folder / "vae")
    _run("train", folder / "latents", "--images", 48, "--batch", 24, "--out", folder / "runs" / "mine")
    return folder


def _run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def _people(file: Path, images: np.ndarray) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        rows = ["file_name,hair,age"]
        for i, image in enumerate(images):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            archive.writestr(f"people/{i}.png", png.getvalue())
            rows.append(f"{i}.png,{('red', 'black', 'grey')[i % 3]},{i / 24}")
        archive.writestr("people/metadata.csv", "\n".join(rows))


def _fashion(folder: Path) -> None:
    folder.mkdir()
    for part, count in (("train", 30), ("t10k", 10)):
        grey = np.zeros((count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for name, array in (("images-idx3", grey), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
