"""A small classifier of grey images 28x28, for features where no pretrained network can be had."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SEED = 0


class SmallCNN(nn.Module):
    """Images [N, 1, 28, 28] in [-1, 1] to 64 features [N, 64]."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 5, 2, 2)  # [N, 16, 14, 14]
        self.second = nn.Conv2d(16, 32, 3, 1, 1)
        self.third = nn.Conv2d(32, 64, 3, 1, 1)
        self.wide = nn.Linear(64 * 9, 64)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, 64], after the ReLU."""
        x = F.relu(self.first(x))
        x = F.relu(F.max_pool2d(self.second(x), 2))  # [N, 32, 7, 7]
        x = F.relu(F.max_pool2d(self.third(x), 2))  # [N, 64, 3, 3]
        return F.relu(self.wide(x.flatten(1)))

    def logits(self, features: Tensor) -> Tensor:
        """Logits [N, classes] of features [N, 64]."""
        return self.linear(features)


def trained(x: Tensor, labels: Tensor, *, classes: int = 10, epochs: int = 2, batch: int = 128) -> SmallCNN:
    """A classifier trained on images uint8 [N, 1, 28, 28] with labels [N], always from the same seed.

    Two epochs of AdamW with a learning rate that rises to 3e-3 and falls to zero: our choice, for its price.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net = SmallCNN(classes)
    generator = torch.Generator().manual_seed(SEED)
    steps = epochs * (len(x) // batch)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=max(steps, 2))
    for _ in range(epochs):
        rows = torch.randperm(len(x), generator=generator)
        for index in rows[: len(x) // batch * batch].split(batch):
            images = x[index].float() / 127.5 - 1
            loss = F.cross_entropy(net.logits(net(images)), labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval()
