"""Train on tensors of your own, sample with one call and with two, and look at the learned field.

    python examples/own_tensors.py --out runs/ring

The data are eight Gaussians of standard deviation 0.1 on a circle of radius 2; put any tensor [N, *shape] in
their place. The same command again resumes, or only draws the figure when the run is complete.
"""

import argparse
import math
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

import meanflow as mf

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MODES, RADIUS, STD = 8, 2.0, 0.1
POINTS = 4000


def centres() -> Tensor:
    """Middle of each Gaussian [8, 2]."""
    angle = torch.arange(MODES) * 2 * math.pi / MODES
    return RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)


def ring(n: int, seed: int = 0) -> Tensor:
    """Points [n, 2] of the ring."""
    generator = torch.Generator().manual_seed(seed)
    mode = torch.randint(MODES, (n,), generator=generator)
    return centres()[mode] + STD * torch.randn(n, 2, generator=generator)


def coverage(x: Tensor) -> tuple[int, float, float]:
    """How many modes hold at least a third of their due, the share of points within 3 std of one, and their std."""
    distance, mode = torch.cdist(x, centres()).min(dim=1)
    near = distance < 3 * STD
    x, mode = x[near], mode[near]
    counts = torch.bincount(mode, minlength=MODES)
    means = torch.zeros(MODES, 2).index_add(0, mode, x) / counts.clamp_min(1)[:, None]
    covered = int((counts >= len(near) / MODES / 3).sum())
    return covered, float(near.float().mean()), float((x - means[mode]).square().mean().sqrt())


def field(net: torch.nn.Module, side: int = 17) -> tuple[Tensor, Tensor]:
    """Places [side^2, 2] of a grid, and u(z, r=0, t=1) there: from noise to data in one call."""
    axis = torch.linspace(-3, 3, side)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        return z, net(z, t=torch.ones(len(z)), r=torch.zeros(len(z)))


def draw(net: torch.nn.Module, clouds: dict[str, Tensor], file: Path) -> None:
    """A panel for each cloud of points, and one for the field."""
    _, panels = plt.subplots(1, len(clouds) + 1, figsize=(14, 3.8), layout="constrained")
    for panel, (title, x) in zip(panels, clouds.items(), strict=False):
        panel.scatter(*x.T, s=1.5, linewidths=0)
        panel.set_title(title)
    z, u = field(net)
    # Data lie against u: x = z - u(z, 0, 1), so the arrows show -u.
    panels[-1].quiver(*z.T, *-u.T, angles="xy", width=0.004)
    panels[-1].set_title("-u(z, r=0, t=1): where one call goes")
    for panel in panels:
        panel.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal")
    plt.savefig(file, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ring"), help="run folder")
    parser.add_argument("--images", type=int, default=800_000, help="points to be seen in training")
    options = parser.parse_args()

    torch.set_num_threads(1)  # a network this small gains nothing from more
    torch.manual_seed(0)  # decides the initial weights, which are drawn before `fit` sees them
    data = ring(20_000)
    objective = mf.MeanFlow(mf.nets.MLP(shape=(2,), width=128, depth=3))
    run = mf.fit(objective, data, out=options.out, images=options.images, batch=256)
    if run.stopped is not None:
        raise SystemExit(f"stopped after {run.images:,} points; the same command again goes on")

    net = mf.load(options.out)
    noise = mf.noise_from_seeds(range(POINTS), (2,))
    clouds = {
        "data": data[:POINTS],
        "one call": mf.sample(net, noise),
        "two calls": mf.sample(net, noise, steps=2),
    }
    for name, x in clouds.items():
        covered, share, std = coverage(x)
        print(f"{name}: {covered} of {MODES} modes, {share:.1%} of the points within 3 std of one, std {std:.3f}")
    draw(net, clouds, options.out / "ring.png")
    print(f"figure in {options.out / 'ring.png'}")


if __name__ == "__main__":
    main()
