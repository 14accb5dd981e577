"""The Inception network of FID: the one of TensorFlow's 2015 release, as a module that takes the weights papers use.

Architecture: arXiv:1512.00567, in the layout of torchvision, with the differences of the released graph: average
pooling does not count the padding, the last block pools by maximum, and there are 1,008 classes. Names of layers are
those of pt_inception-2015-12-05-6726825d.pth (github.com/mseitzer/pytorch-fid).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 299
FEATURES = 2048
CLASSES = 1008
# name of a layer -> (channels in, channels out, kernel, stride, padding)
Layers = dict[str, tuple[int, int, Any, int, Any]]

_average = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
_maximum = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
_halved = partial(F.max_pool2d, kernel_size=3, stride=2)


class Conv(nn.Module):
    """Convolution without bias, normalisation, ReLU."""

    def __init__(self, ins: int, outs: int, kernel: Any, stride: int, padding: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(ins, outs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, ins, H, W] to [N, outs, H', W']."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Block(nn.Module):
    """Branches side by side, joined along the channels.

    branches: names of layers in their order; a list within them splits in two that are joined. pool: what the last
    branch does first.
    """

    def __init__(self, layers: Layers, branches: list[list[Any]], pool: Any) -> None:
        super().__init__()
        for name, shape in layers.items():
            self.add_module(name, Conv(*shape))
        self.branches, self.pool = branches, pool

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] to [N, C', H', W']."""
        parts = [self._branch(x, names) for names in self.branches]
        pooled = self.pool(x)
        return torch.cat(
            [*parts, self.get_submodule("branch_pool")(pooled) if hasattr(self, "branch_pool") else pooled], 1
        )

    def _branch(self, x: Tensor, names: list[Any]) -> Tensor:
        for name in names:
            forks = name if isinstance(name, tuple) else (name,)
            x = torch.cat([self.get_submodule(fork)(x) for fork in forks], 1)
        return x


def _block_a(ins: int, pool: int) -> Block:
    layers: Layers = {
        "branch1x1": (ins, 64, 1, 1, 0),
        "branch5x5_1": (ins, 48, 1, 1, 0),
        "branch5x5_2": (48, 64, 5, 1, 2),
        "branch3x3dbl_1": (ins, 64, 1, 1, 0),
        "branch3x3dbl_2": (64, 96, 3, 1, 1),
        "branch3x3dbl_3": (96, 96, 3, 1, 1),
        "branch_pool": (ins, pool, 1, 1, 0),
    }
    return Block(layers, [["branch1x1"], _chain("branch5x5", 2), _chain("branch3x3dbl", 3)], _average)


def _block_b(ins: int) -> Block:
    layers: Layers = {
        "branch3x3": (ins, 384, 3, 2, 0),
        "branch3x3dbl_1": (ins, 64, 1, 1, 0),
        "branch3x3dbl_2": (64, 96, 3, 1, 1),
        "branch3x3dbl_3": (96, 96, 3, 2, 0),
    }
    return Block(layers, [["branch3x3"], _chain("branch3x3dbl", 3)], _halved)


def _block_c(ins: int, mid: int) -> Block:
    wide, tall = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
    layers: Layers = {
        "branch1x1": (ins, 192, 1, 1, 0),
        "branch7x7_1": (ins, mid, 1, 1, 0),
        "branch7x7_2": (mid, mid, *wide),
        "branch7x7_3": (mid, 192, *tall),
        "branch7x7dbl_1": (ins, mid, 1, 1, 0),
        "branch7x7dbl_2": (mid, mid, *tall),
        "branch7x7dbl_3": (mid, mid, *wide),
        "branch7x7dbl_4": (mid, mid, *tall),
        "branch7x7dbl_5": (mid, 192, *wide),
        "branch_pool": (ins, 192, 1, 1, 0),
    }
    return Block(layers, [["branch1x1"], _chain("branch7x7", 3), _chain("branch7x7dbl", 5)], _average)


def _block_d(ins: int) -> Block:
    layers: Layers = {
        "branch3x3_1": (ins, 192, 1, 1, 0),
        "branch3x3_2": (192, 320, 3, 2, 0),
        "branch7x7x3_1": (ins, 192, 1, 1, 0),
        "branch7x7x3_2": (192, 192, (1, 7), 1, (0, 3)),
        "branch7x7x3_3": (192, 192, (7, 1), 1, (3, 0)),
        "branch7x7x3_4": (192, 192, 3, 2, 0),
    }
    return Block(layers, [_chain("branch3x3", 2), _chain("branch7x7x3", 4)], _halved)


def _block_e(ins: int, pool: Any) -> Block:
    wide, tall = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
    layers: Layers = {
        "branch1x1": (ins, 320, 1, 1, 0),
        "branch3x3_1": (ins, 384, 1, 1, 0),
        "branch3x3_2a": (384, 384, *wide),
        "branch3x3_2b": (384, 384, *tall),
        "branch3x3dbl_1": (ins, 448, 1, 1, 0),
        "branch3x3dbl_2": (448, 384, 3, 1, 1),
        "branch3x3dbl_3a": (384, 384, *wide),
        "branch3x3dbl_3b": (384, 384, *tall),
        "branch_pool": (ins, 192, 1, 1, 0),
    }
    three = ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")]
    double = ["branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")]
    return Block(layers, [["branch1x1"], three, double], pool)


class Inception(nn.Module):
    """Images [N, 3, H, W] in [-1, 1] of any size to the 2,048 features of FID [N, 2048].

    Images are taken back to their 256 values, resized as TensorFlow 1 does, and scaled by (value - 128) / 128: the
    preprocessing inside the released graph, which reference statistics were made with.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2, 0)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, 1, 0)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, 1, 1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1, 1, 0)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, 1, 0)
        self.Mixed_5b = _block_a(192, 32)
        self.Mixed_5c = _block_a(256, 64)
        self.Mixed_5d = _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b = _block_c(768, 128)
        self.Mixed_6c = _block_c(768, 160)
        self.Mixed_6d = _block_c(768, 160)
        self.Mixed_6e = _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b = _block_e(1280, _average)
        self.Mixed_7c = _block_e(2048, _maximum)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, 2048]."""
        x = (resize_tf1(((x + 1) * 127.5).round(), SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # [N, 64, 147, 147]
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halved(x)))  # [N, 192, 71, 71]
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_halved(x))))  # [N, 288, 35, 35]
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        x = self.Mixed_6e(self.Mixed_6d(x))  # [N, 768, 17, 17]
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # [N, 2048, 8, 8]
        return x.mean((2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """Logits [N, 1008] of features [N, 2048]."""
        return self.fc(features)


def resize_tf1(x: Tensor, side: int) -> Tensor:
    """Bilinear resize [N, C, H, W] -> [N, C, side, side] of TensorFlow 1 with align_corners=False.

    Output row i reads at i H / side, without the half-pixel shift that torch has and without antialiasing.
    """
    rows, columns = (_reading(n, side, x) for n in x.shape[-2:])
    return rows @ x @ columns.T


def _reading(n: int, side: int, like: Tensor) -> Tensor:
    """Weights [side, n] with which each output row reads the n input rows."""
    at = torch.arange(side, dtype=torch.float64, device="cpu") * (n / side)
    low = at.floor().long().clamp_max(n - 1)
    high, share = (low + 1).clamp_max(n - 1), at - low
    weights = torch.zeros(side, n, dtype=torch.float64, device="cpu")
    index = torch.arange(side, device="cpu")
    weights.index_put_((index, low), 1 - share, accumulate=True)
    weights.index_put_((index, high), share, accumulate=True)
    return weights.to(like.device, like.dtype)


def _chain(name: str, n: int) -> list[str]:
    return [f"{name}_{i}" for i in range(1, n + 1)]
