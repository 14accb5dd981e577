"""Restore images of which the lower half is missing: one network call, conditional on what is there.

    python examples/restore.py ../shared/data/fashion-mnist --out runs/restore

The folder holds the four files of Fashion-MNIST (or MNIST). The observation, the upper half and a channel that says
which pixels were seen, goes to the network beside the noise. The same command again resumes, or only measures and
draws when the run is complete.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import meanflow as mf
from meanflow.evaluation.pictures import picture, save_picture

SEEDS = 8
TESTED = 500


class Halves:
    """Images, each with its upper half as observation [2, H, W]: pixels, grey where unseen, and which were seen."""

    classes, class_names = None, None

    def __init__(self, images: mf.data.Dataset) -> None:
        self.images = images
        self.shape = tuple(images.shape)
        self.seen = torch.zeros(1, *self.shape[1:])
        self.seen[:, : self.shape[1] // 2] = 1

    def __len__(self) -> int:
        return len(self.images)

    def observe(self, x: Tensor) -> Tensor:
        """What is known of images [B, 1, H, W]."""
        return torch.cat([x * self.seen, self.seen.expand(len(x), -1, -1, -1)], dim=1)

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x, _ = self.images.batch(indices)
        return x, {"observation": self.observe(x)}

    def description(self) -> dict[str, Any]:
        return {**self.images.description(), "kind": "halves", "classes": None}


def error(x: Tensor, truth: Tensor, seen: Tensor) -> float:
    """Root mean squared error of the missing half; images lie in [-1, 1]."""
    return float((x - truth)[..., seen[0] == 0].square().mean().sqrt())


def nearest(truth: Tensor, known: Tensor, seen: Tensor) -> Tensor:
    """For each image, the one of `known` whose upper half is nearest."""
    here = seen[0] == 1
    return known[torch.cdist(truth[..., here].flatten(1), known[..., here].flatten(1)).argmin(1)]


def report(net: torch.nn.Module, data: Halves, folder: str, out: Path) -> None:
    """Errors beside those of simple guesses, the variety of the samples, and a picture, on images that are held out."""
    truth, _ = mf.data.open_data(folder, split="held_out").batch(range(TESTED))
    known, _ = data.batch(range(10_000))
    cond = {"observation": data.observe(truth)}
    noise = mf.noise_from_seeds(range(SEEDS * TESTED), net.shape)
    many = torch.stack([mf.sample(net, e, cond) for e in noise.split(TESTED)])  # [S, B, C, H, W]
    guesses = {
        "grey": torch.zeros_like(truth),
        "blank": -torch.ones_like(truth),
        "mean image": known.mean(0, keepdim=True).expand_as(truth),
        "nearest of 10,000": nearest(truth, known, data.seen),
        "one sample": many[0],
        f"mean of {SEEDS} samples": many.mean(0),
    }
    for name, x in guesses.items():
        print(f"{name}: error of the missing half {error(x, truth, data.seen):.3f}")
    spread = many.std(0)
    print(
        f"spread over {SEEDS} seeds: {float(spread[..., data.seen[0] == 0].mean()):.3f} in the missing half, "
        f"{float(spread[..., data.seen[0] == 1].mean()):.3f} in the seen one"
    )
    shown = [truth[:12], data.observe(truth[:12])[:, :1], *many[:4, :12]]
    save_picture(picture(torch.cat(shown), columns=12), out / "restore.png")
    print(f"figure in {out / 'restore.png'}: the image, what was seen of it, four samples")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder with the files of Fashion-MNIST")
    parser.add_argument("--out", type=Path, default=Path("runs/restore"), help="run folder")
    parser.add_argument("--images", type=int, default=96_000, help="images to be seen in training")
    options = parser.parse_args()

    torch.manual_seed(0)  # decides the initial weights, which are drawn before `fit` sees them
    data = Halves(mf.data.open_data(options.folder))
    net = mf.nets.DiT(data.shape, patch=4, width=64, depth=3, heads=4, observation=2)
    run = mf.fit(mf.MeanFlow(net), data, out=options.out, images=options.images, batch=64, lr=2e-3, ema=(0.995,))
    if run.stopped is not None:
        raise SystemExit(f"stopped after {run.images:,} images; the same command again goes on")

    report(mf.load(options.out), data, options.folder, options.out)


if __name__ == "__main__":
    main()
