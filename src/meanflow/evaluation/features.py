"""Features behind one interface: images in, vectors out, and a record of what made them."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Dataset
from . import fashion_cnn
from .inception import Inception
from .resnet56 import ResNet56
from .storage import file_hash, hash_tensors, keep, kept, weights_file
from .vit import DINOv2

FID_URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
RESNET56_URL = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/resnet56-4bfd9763.th"
DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vit{0}14/dinov2_vit{0}14_pretrain.pth"


@dataclass
class Extractor:
    """Samples float [N, *shape], images in [-1, 1], to features float32 [N, D] on the CPU.

    net: does that, with all of its own preprocessing. sha256: of its weights, None where it has none. resize: how
    images reach its input. costly: whether its features are worth keeping on the disk. batch: samples at a time.
    """

    name: str
    net: Callable[[Tensor], Tensor]
    sha256: str | None = None
    resize: str = "none"
    costly: bool = True
    device: torch.device | str = "cpu"
    batch: int = 250

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Features [N, D] of samples [N, *shape]; raises ValueError where the module returns something else."""
        parts = [self.net(part.to(self.device)) for part in x.float().split(self.batch)]
        if not all(isinstance(part, Tensor) and part.ndim == 2 for part in parts) or sum(map(len, parts)) != len(x):
            came = list(parts[0].shape) if isinstance(parts[0], Tensor) else type(parts[0]).__name__
            raise ValueError(f"the features {self.name} must be [N, D], one row a sample, got {came}")
        return torch.cat([part.float().cpu() for part in parts])

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor | None:
        """Logits [N, K] of its classes on the CPU; None where it knows none."""
        logits = getattr(self.net, "logits", None)
        return None if logits is None else logits(features.to(self.device)).float().cpu()


def extractor(
    name: str,
    *,
    weights: str | Path | None = None,
    sha256: str | None = None,
    device: torch.device | str = "cpu",
    train: Dataset | None = None,
) -> Extractor:
    """The features of a name: pixels, pixels-8x8, inception, resnet56, fashion-cnn, dinov2-b, dinov2-l, or
    my_file.py:function.

    weights: path of the weights, by default in the cache folder or fetched. sha256: what their hash begins with.
    train: data that fashion-cnn is trained on. Raises ValueError for unknown names and other weights, and
    FileNotFoundError for weights that cannot be had.
    """
    if name in PIXELS:
        return Extractor(name, PIXELS[name], costly=False)
    if name in NETS:
        build, file, url, resize = NETS[name]
        path = weights_file(name, file, sha256, url, weights)
        net = _loaded(build(), path, name).to(device)
        return Extractor(name, net, file_hash(path), resize, device=device)
    if name == "fashion-cnn":
        return _fashion(train, device)
    if ".py:" in name:
        return _own(name, device)
    known = ", ".join([*PIXELS, *NETS, "fashion-cnn"])
    raise ValueError(f"there are no features {name!r} (known: {known}, or my_file.py:function)")


PIXELS: dict[str, Callable[[Tensor], Tensor]] = {
    "pixels": lambda x: x.flatten(1),
    "pixels-8x8": lambda x: F.adaptive_avg_pool2d(x, 8).flatten(1),
}
NETS: dict[str, tuple[Callable[[], nn.Module], str, str, str]] = {
    "inception": (Inception, "pt_inception-2015-12-05-6726825d.pth", FID_URL, "tf1-bilinear-299"),
    "resnet56": (ResNet56, "resnet56-4bfd9763.th", RESNET56_URL, "none"),
    "dinov2-b": (lambda: DINOv2(768, 12, 12), "dinov2_vitb14_pretrain.pth", DINOV2_URL.format("b"), "bicubic-224"),
    "dinov2-l": (lambda: DINOv2(1024, 24, 16), "dinov2_vitl14_pretrain.pth", DINOV2_URL.format("l"), "bicubic-224"),
}


def _loaded(net: nn.Module, path: Path, name: str) -> nn.Module:
    """The network with the weights of a file, which may wrap them in "state_dict" and "module."; nothing is run."""
    try:
        stored: Any = torch.load(path, map_location="cpu", weights_only=True)
        stored = stored.get("state_dict", stored)
        net.load_state_dict({key.removeprefix("module."): value for key, value in stored.items()})
    except (RuntimeError, AttributeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} does not hold the weights of {name}: {str(error).splitlines()[0]}") from error
    return net.eval().requires_grad_(False)


def _fashion(train: Dataset | None, device: torch.device | str) -> Extractor:
    """The small classifier of these training images, trained at the first time and kept."""
    if train is None or tuple(train.shape) != (1, 28, 28) or not train.classes:
        raise ValueError(
            "the features fashion-cnn come from a classifier of the training images, grey 28x28 with classes; name "
            "their folder, e.g. data='path/to/fashion-mnist'"
        )
    about = {
        "trained": "fashion-cnn",
        "version": 1,
        "data": train.description()["fingerprint"],
        "torch": torch.__version__,
    }
    net = fashion_cnn.SmallCNN(train.classes)
    found = kept("classifier", about)
    if found is None:
        x, labels = train.batch(range(len(train)))
        assert isinstance(labels, Tensor)
        net = fashion_cnn.trained(((x + 1) * 127.5).round().to(torch.uint8), labels, classes=train.classes)
        keep("classifier", about, net.state_dict(), {})
    else:
        net.load_state_dict(found[0])
    net.eval().requires_grad_(False).to(device)
    return Extractor("fashion-cnn", net, hash_tensors(net.state_dict()), device=device)


def _own(name: str, device: torch.device | str) -> Extractor:
    """A function or module of the user's file."""
    file, _, attribute = name.rpartition(":")
    path = Path(file).expanduser()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"{name}: there is no file {path}; own features are named my_file.py:function")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, attribute, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ValueError(f"{name}: {path} has no function {attribute!r}, only {', '.join(names) or 'none'}")
    if isinstance(function, nn.Module):
        function = function.to(device).eval()
    # Weights that the file loads from elsewhere are not seen by this hash, so its features are not kept on the disk.
    return Extractor(name, function, file_hash(path), costly=False, device=device)
