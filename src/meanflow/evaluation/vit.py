"""The vision transformer of DINOv2 (arXiv:2304.07193), with the names of its released checkpoints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as in its own transforms
SIDE, PATCH, TRAINED = 224, 14, 37  # input as in arXiv:2306.04675 (FD-DINOv2); positions were trained at 518 / 14 = 37


class DINOv2(nn.Module):
    """Images [N, 3, H, W] in [-1, 1] to the normalised class token [N, width].

    Resized to 224 x 224 by bicubic interpolation with antialiasing, which agrees with Pillow's up to rounding.
    """

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + TRAINED**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # in the checkpoints; only training uses it
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, PATCH)})
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Class tokens [N, width]."""
        mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) for values in (MEAN, STD))
        x = F.interpolate((x + 1) / 2, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
        tokens = self.patch_embed["proj"]((x - mean) / std).flatten(2).transpose(1, 2)  # [N, 256, width]
        z = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1) + self._positions()
        for block in self.blocks:
            z = block(z)
        return self.norm(z)[:, 0]

    def _positions(self) -> Tensor:
        """The positions of the trained grid, read at those of this one; the offset 0.1 is that of the released code."""
        n = SIDE // PATCH
        grid = self.pos_embed[:, 1:].reshape(1, TRAINED, TRAINED, -1).permute(0, 3, 1, 2)
        scale = (n + 0.1) / TRAINED
        grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], 1)


class Block(nn.Module):
    """Attention and a two-layer network, each scaled by a learned vector."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": nn.Parameter(torch.ones(width))}) for _ in range(2))

    def forward(self, z: Tensor) -> Tensor:
        """z [N, tokens, width]."""
        n, tokens, width = z.shape
        parts = self.attn["qkv"](self.norm1(z)).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(n, tokens, width)
        z = z + self.ls1["gamma"] * self.attn["proj"](seen)
        return z + self.ls2["gamma"] * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(z))))
