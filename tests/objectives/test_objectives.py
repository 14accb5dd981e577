"""Law 4 and the border: limits in which objectives must coincide, and what they refuse."""

import pytest
import torch
from torch import nn

from meanflow import AdaptiveWeight, FlowMatching, Guidance, LogitNormal, MeanFlow, Times
from meanflow.nets import MLP, DiT
from meanflow.objectives import check_network
from oracles import relative


def net_of(classes=3):
    net = DiT((1, 8, 8), patch=4, width=32, depth=1, heads=4, classes=classes)
    for p in net.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.2)
    return net


def gradient(net, loss):
    net.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def batch(n=16):
    x, noise = torch.randn(2, n, 1, 8, 8)
    return x, noise, torch.rand(n), torch.arange(n) % 3


def test_share_one_is_flow_matching():
    net, (x, noise, t, labels) = net_of(), batch()
    weighting = AdaptiveWeight(p=0.5)
    flow = FlowMatching(net, weighting=weighting).loss(x, labels, noise=noise, t=t)
    mean = MeanFlow(net, weighting=weighting).loss(x, labels, noise=noise, t=t, r=t)
    assert torch.equal(flow.loss, mean.loss)
    assert torch.equal(gradient(net, flow.loss), gradient(net, mean.loss))
    seeded = [
        MeanFlow(net, times=Times(LogitNormal(), LogitNormal(), share_equal=1.0))(
            x, labels, generator=torch.Generator().manual_seed(0)
        )
        for _ in range(2)
    ]
    assert torch.equal(seeded[0].loss, seeded[1].loss) and "mse_u" not in seeded[0].parts


def test_share_below_one_is_not_flow_matching():
    net, (x, noise, t, labels) = net_of(), batch()
    flow = FlowMatching(net, weighting=AdaptiveWeight()).loss(x, labels, noise=noise, t=t)
    mean = MeanFlow(net).loss(x, labels, noise=noise, t=t, r=t * 0.5)
    assert relative(gradient(net, mean.loss), gradient(net, flow.loss)) > 0.05


@pytest.mark.parametrize("pick", ["first", "coin"])
def test_guidance_scale_one_is_no_guidance(pick):
    net, (x, noise, t, labels) = net_of(), batch()
    r = torch.where(torch.rand(16) < 0.5, t, t / 3)
    given = {"noise": noise, "t": t, "r": r}
    plain = MeanFlow(net).loss(x, labels, **given)
    one = MeanFlow(net, guidance=Guidance(scale=1.0, drop_rows=pick)).loss(x, labels, **given)
    two = MeanFlow(net, guidance=Guidance(scale=2.0, drop_rows=pick)).loss(x, labels, **given)
    assert torch.equal(plain.loss, one.loss)
    assert relative(gradient(net, two.loss), gradient(net, plain.loss)) > 1e-3


def test_all_labels_dropped_is_the_unconditional_objective():
    net, (x, noise, t, labels) = net_of(), batch()
    given = {"noise": noise, "t": t, "r": t / 2}
    everything = torch.ones(16, dtype=torch.bool)
    dropped = MeanFlow(net, guidance=Guidance(scale=3.0, mix=0.5)).loss(x, labels, dropped=everything, **given)
    unconditional = MeanFlow(net).loss(x, torch.full_like(labels, 3), **given)
    assert torch.equal(dropped.loss, unconditional.loss)
    half = MeanFlow(net, guidance=Guidance(scale=3.0, mix=0.5)).loss(x, labels, dropped=torch.arange(16) < 8, **given)
    assert not torch.equal(half.loss, unconditional.loss)


def test_rows_come_back_in_their_order():
    net, (x, noise, t, labels) = net_of(), batch()
    r = torch.where(torch.arange(16) % 3 == 0, t, t / 2)
    whole = MeanFlow(net).loss(x, labels, noise=noise, t=t, r=r).rows
    for i in (0, 1, 5):
        one = slice(i, i + 1)
        alone = MeanFlow(net).loss(x[one], labels[one], noise=noise[one], t=t[one], r=r[one]).rows
        for name in ("squared_error", "v_error"):
            assert relative(whole[name][one], alone[name]) < 1e-4


def test_raw_parts_are_means_per_dimension():
    net, (x, noise, t, labels) = net_of(), batch()
    r = torch.cat([t[:12], t[12:] / 2])
    out = MeanFlow(net).loss(x, labels, noise=noise, t=t, r=r)
    z = (1 - t[:, None, None, None]) * x + t[:, None, None, None] * noise
    u = net(z[:12], t=t[:12], r=t[:12], cond=labels[:12])
    assert relative(out.parts["mse_v"], (u - (noise - x)[:12]).square().mean()) < 1e-5
    assert set(out.parts) == {"mse_v", "mse_u", "dudt_ratio", "weight"}


def test_weight_carries_no_gradient_and_sums_over_dimensions():
    net, (x, noise, t, labels) = net_of(), batch()
    out = MeanFlow(net, weighting=AdaptiveWeight(p=1.0, c=1e-2)).loss(x, labels, noise=noise, t=t, r=t / 2)
    squared = out.rows["squared_error"]
    assert relative(out.loss, (squared / (squared + 1e-2)).mean()) < 1e-6
    # With p = 1 the loss is about 1, yet its gradient is that of the weighted squared error, not about 0.
    assert out.loss > 0.99 and gradient(net, out.loss).norm() > 1e-3


@pytest.mark.parametrize("tangent", [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)])
def test_the_papers_wrong_tangents_are_other_objectives(tangent):
    net, (x, noise, t, labels) = net_of(), batch()
    given = {"noise": noise, "t": t, "r": t / 2}
    right = MeanFlow(net).loss(x, labels, **given)
    wrong = MeanFlow(net, tangent=tangent).loss(x, labels, **given)
    assert relative(gradient(net, wrong.loss), gradient(net, right.loss)) > 1e-3


def test_conditions_that_are_no_class_index():
    net = MLP((5,), width=16, depth=1, condition_features=4)
    x, cond = torch.randn(8, 5), torch.randn(8, 4)
    out = MeanFlow(net, guidance=Guidance(scale=2.0, drop=0.5, drop_rows="coin"))(x, cond)
    assert out.loss.isfinite()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": torch.full((4,), 0.9)}, r"r must not exceed t.*row 0"),
        ({"t": torch.full((4,), 1.2)}, r"\[0, 1\].*1\.2"),
        ({"r": torch.full((4,), -0.1)}, r"\[0, 1\].*-0\.1"),
        ({"t": torch.full((4, 1), 0.5)}, r"shape \[4\], got \[4, 1\]"),
        ({"t": torch.ones(4, dtype=torch.long)}, "floating-point"),
        ({"noise": torch.randn(4, 3)}, r"noise must have the shape of x"),
    ],
)
def test_bad_times_and_shapes_are_explained(changes, message):
    given = {"noise": torch.randn(4, 2), "t": torch.full((4,), 0.5), "r": torch.full((4,), 0.2)}
    with pytest.raises(ValueError, match=message):
        MeanFlow(MLP((2,))).loss(torch.randn(4, 2), **{**given, **changes})


def test_guidance_without_conditions_is_refused():
    with pytest.raises(ValueError, match="cond=None"):
        MeanFlow(MLP((2,)), guidance=Guidance(scale=2.0))(torch.randn(4, 2))


class Broken(nn.Module):
    """A network with one mistake."""

    def __init__(self, mistake):
        super().__init__()
        self.mistake, self.net = mistake, MLP((4,), width=16, depth=1)

    def forward(self, z, *, t, r, cond=None):
        if self.mistake == "ignores t":
            t = r + 0.1
        if self.mistake == "ignores r":
            r = torch.zeros_like(r)
        if self.mistake == "detaches t":
            t = t.detach()
        if self.mistake == "detaches r":
            r = r.detach()
        if self.mistake == "rounds t":
            t = (t * 2).long() / 2.0
        u = self.net(z, t=t, r=r)
        if self.mistake == "shape":
            return u[:, :3]
        return u.double() if self.mistake == "dtype" else u


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("shape", r"shape of z, \[2, 4\], but returned \[2, 3\]"),
        ("dtype", "dtype of z"),
        ("ignores t", "does not depend on t"),
        ("ignores r", "does not depend on r"),
        ("rounds t", "does not depend on t"),
        ("detaches t", "derivative in t is exactly zero"),
        ("detaches r", "derivative in r is exactly zero"),
    ],
)
def test_networks_that_break_the_contract_are_found(mistake, message):
    with pytest.raises(ValueError, match=message):
        check_network(MeanFlow(Broken(mistake)), torch.randn(3, 4))


def test_networks_in_half_precision_and_with_another_call_are_explained():
    with pytest.raises(ValueError, match=r"torch\.bfloat16.*float32"):
        check_network(MeanFlow(Broken("none").bfloat16()), torch.randn(3, 4))

    class Positional(nn.Module):
        def forward(self, z, t, r):
            return z

    with pytest.raises(ValueError, match=r"net\(z, t=t, r=r, cond=cond\)"):
        check_network(MeanFlow(Positional()), torch.randn(3, 4))
    with pytest.raises(ValueError, match=r"127\.5"):
        MeanFlow(MLP((4,)))(torch.zeros(3, 4, dtype=torch.uint8))


def test_sound_networks_pass_whatever_their_zeros():
    check_network(MeanFlow(Broken("none")), torch.randn(3, 4))
    for conditioning in ("t,r", "t,t-r", "t,r,t-r", "t-r"):
        net = DiT((1, 8, 8), width=32, depth=1, heads=4, classes=3, conditioning=conditioning)
        before = {k: v.clone() for k, v in net.state_dict().items()}
        check_network(MeanFlow(net), torch.randn(2, 1, 8, 8), torch.tensor([0, 2]))
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    check_network(FlowMatching(Broken("ignores r")), torch.randn(3, 4))


def test_labels_beyond_the_table_are_refused():
    with pytest.raises(ValueError, match=r"classes=8"):
        check_network(MeanFlow(net_of()), torch.randn(2, 1, 8, 8), torch.tensor([0, 7]))
