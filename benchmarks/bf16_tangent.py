"""How wrong du/dt is in bfloat16, layer by layer: error of value and tangent against float64.

    python benchmarks/bf16_tangent.py

Each layer gets a random input and a random tangent of unit size; relative errors, median of 20 draws. "autocast" is
the network's own case: float32 input, the layer under autocast. "bf16 weights" is the same layer with weights, input
and tangent all in bfloat16, which training here refuses.
"""

from __future__ import annotations

import copy
import platform
import statistics

import torch
from torch import Tensor, nn

import meanflow as mf
from meanflow.core.dual import dual_jvp
from meanflow.nets.layers import Attention, TimeEmbedding


class Times1000(nn.Module):
    """The same embedding with times multiplied by 1000, as several ports do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = TimeEmbedding(width)

    def forward(self, t: Tensor) -> Tensor:
        return self.inner(1000 * t)


class Field(nn.Module):
    """A whole network as a function of t at a fixed point."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mf.nets.DiT((4, 16, 16), patch=2, width=128, depth=4, heads=4)
        for p in self.net.parameters():
            if not p.any():
                nn.init.normal_(p, std=0.05)

    def forward(self, z: Tensor) -> Tensor:
        t = torch.full((len(z),), 0.7, dtype=torch.float64 if z.dtype == torch.float64 else torch.float32)
        return self.net(z, t=t.to(z.dtype), r=(t / 2).to(z.dtype))


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "Linear 256": (nn.Linear(256, 256), (64, 256)),
    "Conv2d 3x3, 64": (nn.Conv2d(64, 64, 3, padding=1), (8, 64, 8, 8)),
    "GroupNorm": (nn.GroupNorm(8, 64), (8, 64, 8, 8)),
    "LayerNorm": (nn.LayerNorm(256), (64, 256)),
    "GELU": (nn.GELU(approximate="tanh"), (64, 256)),
    "SiLU": (nn.SiLU(), (64, 256)),
    "Attention, 64 tokens": (Attention(128, 4), (8, 64, 128)),
    "time embedding": (TimeEmbedding(128), (64,)),
    "time embedding, t x 1000": (Times1000(128), (64,)),
    "DiT, depth 4": (Field(), (8, 4, 16, 16)),
}


def errors(layer: nn.Module, shape: tuple[int, ...], mode: str) -> tuple[float, float]:
    """Relative error of value and tangent against float64."""
    x = torch.rand(shape, dtype=torch.float64) if len(shape) == 1 else torch.randn(shape, dtype=torch.float64)
    d = torch.ones_like(x) if len(shape) == 1 else torch.randn_like(x)
    exact = dual_jvp(copy.deepcopy(layer).double(), (x,), (d,))
    if mode == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = dual_jvp(layer, (x.float(),), (d.float(),))
    else:
        found = dual_jvp(copy.deepcopy(layer).bfloat16(), (x.bfloat16(),), (d.bfloat16(),))
    pairs = zip(found, exact, strict=True)
    value, tangent = (float((a.detach().double() - b.detach()).norm() / b.detach().norm()) for a, b in pairs)
    return value, tangent


def main() -> None:
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {platform.machine()}, CPU\n")
    print("| layer | value, autocast | tangent, autocast | value, bf16 weights | tangent, bf16 weights |")
    print("|---|---|---|---|---|")
    for name, (layer, shape) in LAYERS.items():
        cells = []
        for mode in ("autocast", "bf16 weights"):
            draws = [errors(layer, shape, mode) for _ in range(20)]
            cells += [f"{statistics.median(d[i] for d in draws):.2%}" for i in (0, 1)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
