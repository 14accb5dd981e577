"""Small random autoencoders and images for tests of latents."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from meanflow.data import load_vae


def tiny_vae(folder: Path, seed: int = 0, width: int = 8, channels: int = 4, gain: float = 3.0) -> Path:
    """The two files of a TAESD of this width with random weights, latents of about standard deviation `gain`."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, net in zip(("encoder", "decoder"), tiny_halves(width, channels), strict=True):
        torch.save(net.state_dict(), folder / f"tiny_{name}.pth")
    rescale(folder, gain)
    return folder


def rescale(folder: Path, gain: float) -> None:
    """The last layer of the encoder multiplied so that random images get latents of this standard deviation."""
    file = folder / "tiny_encoder.pth"
    state = torch.load(file, weights_only=True)
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(9)) * 2 - 1
    std = load_vae(folder).encode(x)[0].std()
    last = max(int(name.split(".")[0]) for name in state)
    for name in (f"{last}.weight", f"{last}.bias"):
        state[name] *= gain / std
    torch.save(state, file)


def tiny_halves(width: int, channels: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder and decoder in TAESD's layout, written down layer by layer."""
    down, up = [*_conv(3, width), Block(width)], [nn.Identity(), *_conv(channels, width), nn.Identity()]
    for _ in range(3):
        down += [nn.Conv2d(width, width, 3, 2, 1, bias=False), Block(width)]
        up += [Block(width), nn.Identity(), nn.Conv2d(width, width, 3, 1, 1, bias=False)]
    return nn.Sequential(*down, *_conv(width, channels)), nn.Sequential(*up, Block(width), *_conv(width, 3))


def _conv(narrow: int, wide: int) -> list[nn.Module]:
    return [nn.Conv2d(narrow, wide, 3, padding=1)]


class Block(nn.Module):
    """Names of the weights as in TAESD."""

    def __init__(self, width: int) -> None:
        super().__init__()
        relu = nn.ReLU()
        self.conv = nn.Sequential(*_conv(width, width), relu, *_conv(width, width), relu, *_conv(width, width))


def kl_vae(folder: Path, seed: int = 0, **config: object) -> Path:
    """A random AutoencoderKL, halving the sides once, as diffusers saves it."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(**sizes, **blocks, **config).save_pretrained(folder)
    return folder


def photos(folder: Path, count: int = 22, classes: tuple[str, ...] = ("cats", "dogs")) -> Path:
    """Smooth colour images of several sizes, in the sub-folders of their classes."""
    rng = np.random.default_rng(0)
    for i in range(count):
        place = folder / classes[i % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize((40 + i, 34 + i % 3), Image.Resampling.BICUBIC).save(place / f"{i:02d}.png")
    return folder
