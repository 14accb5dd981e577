"""The U-Net: sizes, conditions, derivative, compilation, price."""

import pytest
import torch

from meanflow import Guidance, MeanFlow, Times
from meanflow.bench import flops
from meanflow.core.compiled import prepare
from meanflow.core.derivative import central_difference, jvp
from meanflow.core.times import Pairs
from meanflow.nets import UNet
from meanflow.nets.unet import Resampling
from oracles import relative


def small(**options):
    """A small U-Net with weights that are not zero anywhere."""
    net = UNet((3, 8, 12), **{"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), **options})
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return net


def batch(n=4, dtype=torch.float32):
    z, v = torch.randn(2, n, 3, 8, 12, dtype=dtype)
    times = torch.rand(2, n, dtype=dtype).sort(0).values
    return z, v, times[1], times[0]


def test_the_number_of_parameters_is_the_authors():
    """55,932,419 with 6 augmentation labels, without classes; counted in the authors' code."""
    with torch.device("meta"):
        net = UNet((3, 32, 32), channels=128, multipliers=(2, 2, 2), blocks=4, attention=(16,), augment_features=6)
    assert sum(p.numel() for p in net.parameters()) == 55_932_419


def test_a_fresh_network_returns_nearly_zero():
    z, _, t, r = batch()
    out = UNet((3, 8, 12), channels=8, multipliers=(1, 2), blocks=1)(z, t=t, r=r)
    assert out.abs().max() < 1e-3


@pytest.mark.parametrize("conditioning", ["t,r", "t,t-r", "t,r,t-r", "t-r"])
def test_every_condition_and_conditioning(conditioning):
    z, _, t, r = batch()
    net = small(classes=5, augment_features=6, conditioning=conditioning)
    label, augment = torch.tensor([0, 4, 5, 1]), torch.randn(4, 6)
    plain, told = net(z, t=t, r=r, cond=label), net(z, t=t, r=r, cond={"label": label, "augment": augment})
    assert plain.shape == z.shape and net.null == 5 and relative(told, plain) > 1e-3
    untouched = net(z, t=t, r=r, cond={"label": label, "augment": torch.zeros(4, 6)})
    assert torch.equal(untouched, plain)


def test_the_exact_derivative_is_that_of_differences():
    z, v, t, r = batch(dtype=torch.float64)
    net = small(augment_features=6).double()
    cond, step = {"augment": torch.randn(4, 6, dtype=torch.float64)}, (v, torch.ones_like(t), None)
    u, dudt = jvp(net, z, t, r, cond, step)
    _, wanted = central_difference(net, z, t, r, cond, step)
    assert relative(dudt, wanted) < 1e-7 and relative(u, net(z, t=t, r=r, cond=cond)) < 1e-12
    _, forgotten = central_difference(net, z, t, r, cond, (v, None, None))
    assert relative(dudt, forgotten) > 1e-3


def test_dropped_labels_leave_what_the_augmentation_said():
    z = batch()[0]
    net = small(classes=5, augment_features=6)
    objective = MeanFlow(net, guidance=Guidance(scale=2.0, mix=0.5), times=Times(share_equal=0.5))
    label, augment = torch.tensor([0, 1, 2, 3]), torch.randn(4, 6)
    kept = objective.drop({"label": label, "augment": augment}, torch.tensor([True, False, False, True]))
    assert kept["label"].tolist() == [5, 1, 2, 5] and torch.equal(kept["augment"], augment)
    out = objective(z, {"label": label, "augment": augment})
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_the_traced_step_is_the_eager_one():
    """One graph with the derivative inside; without Inductor, whose kernels take minutes for a U-Net on two cores."""
    z, v, t, r = batch(8)
    net = prepare(small(augment_features=6, multipliers=(1, 1), blocks=0))
    objective = MeanFlow(net)
    given = (z, {"augment": torch.randn(8, 6)}, v, Pairs(t, torch.cat([t[:4], r[4:]]), 4), None, 0)
    traced = torch.compile(objective._loss, backend="aot_eager", fullgraph=True)
    found = []
    for loss in (objective._loss, traced):
        step = loss(*given)
        gradients = torch.autograd.grad(step.output.loss, list(net.parameters()))
        found.append((step.u, step.dudt, torch.cat([g.flatten() for g in gradients])))
    assert all(relative(a, b) < 1e-4 for a, b in zip(*found, strict=True))


def test_a_step_costs_what_the_mathematics_asks():
    """75 % of the rows have r < t, as in the CIFAR-10 recipes: 3 + 0.75 forwards against the 3 of flow matching."""
    z = torch.randn(8, 3, 8, 12)
    net = small()

    def price(share):
        objective = MeanFlow(net, times=Times(share_equal=share))
        objective(z)
        return flops(lambda: objective(z).loss.backward())

    assert 1.2 < price(0.25) / price(1.0) < 1.27


def test_resampling_keeps_constants_and_halves_then_doubles_smooth_images():
    down, up = Resampling("down"), Resampling("up")
    x = torch.full((1, 2, 16, 16), 3.0)
    assert torch.allclose(down(x)[..., 1:-1, 1:-1], x[..., :6, :6]) and up(down(x)).shape == x.shape
    line = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32)
    assert torch.allclose(up(down(line))[..., 4:-4, 4:-4], line[..., 4:-4, 4:-4], atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UNet((3, 30, 32)), r"divisible by 4"),
        (lambda: UNet((3,)), r"\(C, H, W\)"),
        (lambda: UNet((3, 32, 32), channels=6), "multiple of 4"),
        (lambda: UNet((3, 32, 32), conditioning="r,t"), "conditioning must be one of"),
        (lambda: small()(torch.zeros(1, 3, 8, 8), t=torch.ones(1), r=torch.ones(1)), r"takes samples \[B, 3, 8, 12\]"),
        (
            lambda: small()(
                torch.zeros(1, 3, 8, 12), t=torch.ones(1), r=torch.ones(1), cond={"augment": torch.ones(1, 6)}
            ),
            "without augmentation labels",
        ),
        (
            lambda: small(augment_features=6)(
                torch.zeros(1, 3, 8, 12), t=torch.ones(1), r=torch.ones(1), cond={"augment": torch.ones(1, 5)}
            ),
            r"must be \[B, 6\]",
        ),
    ],
)
def test_what_does_not_fit_is_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()
