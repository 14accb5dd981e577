"""CUDA graphs: sampling never waits for the CPU, so that it can be recorded; and, on a GPU, replays equal `sample`."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from meanflow import CudaGraphSampler, integrate, sample
from meanflow.core.conditions import map_cond
from meanflow.core.sampling import guided
from meanflow.nets import MLP, DiT, SequenceDiT, UNet

NETS = {
    "DiT": (lambda: DiT((1, 8, 8), patch=4, width=32, depth=1, heads=4, classes=3), torch.tensor([0, 2])),
    "MLP": (lambda: MLP((4,), width=32, depth=1, classes=3), torch.tensor([0, 2])),
    "UNet": (
        lambda: UNet((1, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=(4,), classes=3),
        {"label": torch.tensor([0, 2])},
    ),
    "SequenceDiT": (
        lambda: SequenceDiT((2, 8), width=32, depth=1, heads=4, classes=3),
        {"label": torch.tensor([0, 2]), "mask": torch.arange(8) < torch.tensor([[8], [5]])},
    ),
}


@pytest.fixture(autouse=True)
def _autocast(monkeypatch):
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # the meta device knows none


class NothingFromTheCpu(TorchDispatchMode):
    """Refuses what a CUDA graph cannot hold: values read by Python, and copies to the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero"), f"{name} waits for the device"
        out = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        assert all(x.device.type == "meta" for x in made), f"{name} makes a tensor on the CPU"
        came = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        assert all(x.device.type == "meta" for x in came), f"{name} takes a tensor from the CPU"
        return out


class NothingFromPython(TorchFunctionMode):
    """Refuses tensors of Python's numbers, which a GPU copies from the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.tensor, torch.as_tensor, torch.from_numpy), f"{func.__name__} copies from the CPU"
        return func(*args, **(kwargs or {}))


def drawn(net: nn.Module, cond, guidance: float | None = None) -> list[torch.Size]:
    """Shapes of samples of one and three calls, on the meta device, where nothing can be read."""
    net, noise = net.to("meta").eval(), torch.empty(2, *net.shape, device="meta")
    cond = map_cond(lambda c: c.to("meta"), cond)
    field = guided(net, guidance)
    schedules = [torch.linspace(1, 0, calls + 1, device="meta") for calls in (1, 3)]
    with torch.no_grad(), NothingFromTheCpu(), NothingFromPython():
        return [integrate(field, noise, cond, times=rows).shape for rows in schedules]


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("guidance", [None, 2.0])
def test_sampling_never_waits_for_the_cpu(kind, guidance):
    make, cond = NETS[kind]
    net = make()
    assert drawn(net, cond, guidance) == [(2, *net.shape)] * 2


class Curious(MLP):
    def forward(self, z, *, t, r, cond=None):
        return super().forward(z, t=t, r=r, cond=cond) * (2.0 if float(t[0]) > 2 else 1.0)


class Forgetful(MLP):
    def forward(self, z, *, t, r, cond=None):
        return super().forward(z, t=t, r=r, cond=cond) + torch.ones(4).to(z.device)


@pytest.mark.parametrize("wrong", [Curious, Forgetful])
def test_a_network_that_waits_is_noticed(wrong):
    with pytest.raises((AssertionError, RuntimeError)):
        drawn(wrong((4,), width=32, depth=1), None)


def test_off_a_gpu_it_says_what_to_call_instead():
    with pytest.raises(ValueError, match=r"got noise on cpu; call mf\.sample instead"):
        CudaGraphSampler(MLP((4,)), torch.randn(2, 4))


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@gpu
@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("options", [{}, {"steps": 4}, {"times": [1, 0.3, 0], "guidance": 2.0}])
def test_replays_equal_sample(kind, options):
    make, cond = NETS[kind]
    net = make().cuda()
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.1)
    cond = map_cond(torch.Tensor.cuda, cond)
    draw = CudaGraphSampler(net, torch.randn(2, *net.shape, device="cuda"), cond, **options)
    noise = torch.randn(2, *net.shape, device="cuda")
    other = cond.flip(0) if isinstance(cond, torch.Tensor) else cond | {"label": cond["label"].flip(0)}
    first = draw(noise, cond)
    assert torch.allclose(draw(noise, other), sample(net, noise, other, **options), atol=1e-5)
    assert torch.allclose(first, sample(net, noise, cond, **options), atol=1e-5)  # not overwritten by the second


@gpu
def test_weights_and_shapes_are_followed():
    net, noise = MLP((4,), width=32, depth=1).cuda(), torch.randn(2, 4, device="cuda")
    draw = CudaGraphSampler(net, noise)
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(std=0.1)
    assert torch.allclose(draw(noise), sample(net, noise), atol=1e-5)
    with pytest.raises(ValueError, match="make another"):
        draw(noise[:1])
    net.cpu().cuda()
    with pytest.raises(ValueError, match="weights were moved"):
        draw(noise)
    with pytest.raises(ValueError, match="cannot be recorded"):
        CudaGraphSampler(Curious((4,), width=32, depth=1).cuda(), noise)
