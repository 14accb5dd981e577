"""ResNet-56 for CIFAR-10 (arXiv:1512.03385, 4.2) with the names of github.com/akamaster/pytorch_resnet_cifar10."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what its training normalised by; its README


class Basic(nn.Module):
    """Two convolutions and a shortcut without parameters: every second pixel, and channels of zeros (option A)."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outs)
        self.stride, self.more = stride, (outs - ins) // 2

    def forward(self, x: Tensor) -> Tensor:
        """x [N, ins, H, W] to [N, outs, H / stride, W / stride]."""
        short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + short)


class ResNet56(nn.Module):
    """Images [N, 3, 32, 32] in [-1, 1] to 64 pooled features [N, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _layer(16, 16, 1)
        self.layer2 = _layer(16, 32, 2)
        self.layer3 = _layer(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, 64]."""
        mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) for values in (MEAN, STD))
        x = ((x + 1) / 2 - mean) / std
        return self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))).mean((2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """Logits [N, 10] of features [N, 64]."""
        return self.linear(features)


def _layer(ins: int, outs: int, stride: int, blocks: int = 9) -> nn.Sequential:
    return nn.Sequential(Basic(ins, outs, stride), *(Basic(outs, outs, 1) for _ in range(blocks - 1)))
