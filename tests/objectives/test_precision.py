"""bf16: the network under autocast, everything else in float32; fp16 refused with the reason."""

import pytest
import torch
from torch import nn

from meanflow import AdaptiveWeight, FlowMatching, Guidance, MeanFlow, fit, load, sample
from meanflow.core.derivative import Autocast, jvp
from meanflow.nets import DiT
from oracles import relative


def dit():
    net = DiT((1, 8, 8), patch=2, width=64, depth=2, heads=4, classes=3)
    for p in net.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.05)
    return net


def batch(n=32):
    x, noise = torch.randn(2, n, 1, 8, 8)
    t, r = torch.rand(2, n).sort(0, descending=True).values
    return x, torch.arange(n) % 3, {"noise": noise, "t": t, "r": torch.where(torch.arange(n) < 24, t, r)}


def gradient(net, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)])


def test_bf16_gradients_are_near_float32_and_stay_float32():
    net, (x, labels, given) = dit(), batch()
    options = {"guidance": Guidance.from_paper(1.0, 0.5), "weighting": AdaptiveWeight(0.5)}
    exact = MeanFlow(net, **options).loss(x, labels, **given)
    low = MeanFlow(net, precision="bf16", **options).loss(x, labels, **given)
    found = gradient(net, low.loss)
    assert low.loss.dtype == found.dtype == torch.float32
    assert 1e-6 < relative(found, gradient(net, exact.loss)) < 3e-2
    flow = FlowMatching(net, precision="bf16").loss(x, labels, noise=given["noise"], t=given["t"])
    assert relative(flow.loss, FlowMatching(net).loss(x, labels, noise=given["noise"], t=given["t"]).loss) < 1e-2


def test_time_embedding_stays_in_float32_under_autocast():
    net, (x, labels, given) = dit(), batch()
    seen = []
    for embedding in net.interval.embeddings:
        embedding.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    MeanFlow(net, precision="bf16").loss(x, labels, **given)
    assert seen and set(seen) == {torch.float32}


def test_derivative_can_be_run_in_float32():
    net, (x, labels, given) = dit(), batch()
    z, t, r = x, given["t"], given["t"] / 2
    step = (given["noise"] - x, torch.ones_like(t), None)
    exact = jvp(net, z, t, r, labels, step)[1]
    low = jvp(Autocast(net), z, t, r, labels, step)[1]
    assert 1e-4 < relative(low, exact) < 2e-2
    mixed = MeanFlow(net, precision="bf16", derivative_precision="fp32").loss(x, labels, **given)
    whole = MeanFlow(net).loss(x, labels, **given)
    # The rows with r < t run in float32 altogether, the others under autocast.
    assert torch.equal(mixed.rows["squared_error"][24:], whole.rows["squared_error"][24:])
    assert not torch.equal(mixed.rows["squared_error"][:24], whole.rows["squared_error"][:24])


@pytest.mark.parametrize("precision", ["fp16", "half"])
def test_fp16_is_refused_with_the_reason(precision):
    with pytest.raises(ValueError, match=r"NaN after 100,000 steps.*bf16 or fp32"):
        MeanFlow(dit(), precision=precision)
    with pytest.raises(ValueError, match="bf16 or fp32"):
        MeanFlow(dit(), derivative_precision=precision)


def test_finite_differences_in_bf16_are_refused():
    with pytest.raises(ValueError, match='derivative_precision="fp32"'):
        MeanFlow(dit(), precision="bf16", derivative="finite_difference")
    assert MeanFlow(dit(), precision="bf16", derivative="finite_difference", derivative_precision="fp32")


def test_a_run_trains_in_bf16_and_loads(tmp_path):
    data = (torch.rand(64, 1, 8, 8) * 2 - 1, torch.arange(64) % 3)
    fit(MeanFlow(dit(), precision="bf16"), data, out=tmp_path / "run", images=128, batch=32)
    net = load(tmp_path / "run")
    assert sample(net, torch.randn(2, 1, 8, 8), torch.tensor([0, 1])).dtype == torch.float32
