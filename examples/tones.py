"""Generate sequences of different lengths: made-up signals of one to three tones that swell and fade.

    python examples/tones.py --out runs/tones

Each signal has 24 to 64 values. It is padded to 64, and a mask says what exists: padding enters neither the network,
nor the loss. One network call makes a signal of the length that is asked for. The same command again resumes, or only
measures and draws when the run is complete.
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

SHORTEST, LONGEST = 24, 64
NOTES = (1 / 16, 2 / 16, 3 / 16, 5 / 16)  # cycles a value
KINDS = 3  # one, two or three tones
AMPLITUDE = 1.5


def swell(length: int) -> Tensor:
    """From nothing to 1 and back [length]: it tells whether a signal knows where it ends."""
    return torch.sin(math.pi * (torch.arange(length) + 0.5) / length) ** 2


def waves(length: int) -> Tensor:
    """Sine and cosine of each note under the swell [2 * notes, length]."""
    angle = 2 * math.pi * torch.tensor(NOTES)[:, None] * torch.arange(length)
    return torch.cat([angle.sin(), angle.cos()]) * swell(length)


def signals(n: int, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """n signals [1, length], and how many tones each has, less one."""
    generator = torch.Generator().manual_seed(seed)
    found, kinds = [], torch.arange(n) % KINDS
    for kind in kinds.tolist():
        length = int(torch.randint(SHORTEST, LONGEST + 1, (), generator=generator))
        notes = torch.randperm(len(NOTES), generator=generator)[: kind + 1]
        phase = 2 * math.pi * torch.rand(kind + 1, generator=generator)
        both = waves(length)
        tones = both[notes] * phase.cos()[:, None] + both[notes + len(NOTES)] * phase.sin()[:, None]
        found.append(AMPLITUDE * tones.sum(0, keepdim=True))
    return found, kinds


def judge(found: list[Tensor], kinds: Tensor) -> dict[str, float]:
    """Shares of the energy in tones under a swell and at the ends, and of signals with as many tones as asked for."""
    explained, right, ends = [], [], []
    for x, kind in zip(found, kinds.tolist(), strict=True):
        basis = waves(x.shape[1]).T
        parts = torch.linalg.lstsq(basis, x.T).solution
        explained.append(1 - float((x.T - basis @ parts).square().sum() / x.square().sum()))
        loud = parts.reshape(2, len(NOTES)).norm(dim=0) > AMPLITUDE / 2
        right.append(int(loud.sum()) == kind + 1)
        edge = torch.cat([x[:, :2], x[:, -2:]], dim=1)
        ends.append(float(edge.square().mean() / x.square().mean()))
    mean = {"explained": explained, "right": right, "ends": ends}
    return {name: sum(values) / len(values) for name, values in mean.items()}


def draw(data: list[Tensor], made: list[Tensor], file: Path) -> None:
    """Five signals of the data above five that were made."""
    _, panels = plt.subplots(2, 5, figsize=(14, 4), layout="constrained", sharex=True, sharey=True)
    for row, (name, some) in zip(panels, {"data": data, "one call": made}.items(), strict=True):
        for panel, x in zip(row, some, strict=False):
            panel.plot(x[0], linewidth=1.2)
            panel.axvline(x.shape[1] - 1, color="grey", linestyle=":")
        row[0].set_ylabel(name)
    panels[0][0].set(xlim=(0, LONGEST), ylim=(-4, 4))
    plt.savefig(file, dpi=80)
    plt.close()


def report(net: torch.nn.Module, out: Path) -> None:
    """What samples have in common with data that were not seen in training, and a picture."""
    truth, kinds = signals(600, seed=1)
    lengths = [x.shape[1] for x in truth]
    mask = mf.mask_from_lengths(lengths, LONGEST)
    noise = mf.noise_from_seeds(range(len(truth)), net.shape)
    clouds = {"data": truth, "noise": [e[:, :n] for e, n in zip(noise, lengths, strict=True)]}
    for name, steps in (("one call", 1), ("four calls", 4)):
        x = mf.sample(net, noise, {"label": kinds, "mask": mask}, steps=steps)
        clouds[name] = [row[:, :n] for row, n in zip(x, lengths, strict=True)]
    for name, some in clouds.items():
        found = judge(some, kinds)
        print(
            f"{name}: {found['explained']:.1%} of the energy is tones under the swell, the number of tones is right in "
            f"{found['right']:.1%}, ends at {found['ends']:.1%} of the mean energy"
        )
    draw(truth, clouds["one call"], out / "tones.png")
    print(f"figure in {out / 'tones.png'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tones"), help="run folder")
    parser.add_argument("--images", type=int, default=96_000, help="signals to be seen in training")
    options = parser.parse_args()

    torch.manual_seed(0)  # decides the initial weights, which are drawn before `fit` sees them
    data = mf.data.Sequences(*signals(20_000), longest=LONGEST)
    net = mf.nets.SequenceDiT((1, LONGEST), patch=8, width=64, depth=2, heads=4, classes=KINDS)
    run = mf.fit(mf.MeanFlow(net), data, out=options.out, images=options.images, batch=64, lr=2e-3, ema=(0.99,))
    if run.stopped is not None:
        raise SystemExit(f"stopped after {run.images:,} signals; the same command again goes on")

    report(mf.load(options.out), options.out)


if __name__ == "__main__":
    main()
