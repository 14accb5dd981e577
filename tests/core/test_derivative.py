"""Law 3: the three ways to du/dt agree, for any kind of network; and what happens where there is none."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from meanflow import AdaptiveWeight, MeanFlow, Times
from meanflow.core.derivative import central_difference, evaluating, jvp, predict
from meanflow.nets import MLP, DiT
from oracles import relative


class ConvNet(nn.Module):
    """Convolutions with GroupNorm, weight_norm and dropout, as a user might write."""

    def __init__(self):
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 16, 3, padding=1))
        self.norm = nn.GroupNorm(4, 16)
        self.time = nn.Linear(2, 16)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, z, *, t, r, cond=None):
        h = self.first(z) + self.time(torch.stack([t, t - r], 1))[:, :, None, None]
        return self.last(self.drop(F.silu(self.norm(h))))


class SequenceNet(nn.Module):
    """Attention with a mask and a nested dict as condition."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 3 * 16)
        self.time, self.out = nn.Linear(2, 16), nn.Linear(16, 4)

    def forward(self, z, *, t, r, cond=None):
        q, k, v = self.qkv(z).chunk(3, -1)
        q = q + self.time(torch.stack([t, t - r], 1))[:, None]
        y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], attn_mask=cond["text"]["mask"])
        return self.out(y[:, 0] + cond["speed"][:, None])


def mask(n):
    return (torch.arange(6)[None] < torch.arange(n)[:, None] % 4 + 3)[:, None, None].expand(n, 1, 6, 6)


NETS = {
    "mlp": lambda: (MLP((5,), width=32, depth=2), (5,), lambda n: None),
    "dit": lambda: (
        DiT((1, 8, 8), patch=4, width=32, depth=2, heads=4, classes=3),
        (1, 8, 8),
        lambda n: torch.arange(n) % 3,
    ),
    "conv": lambda: (ConvNet(), (3, 8, 8), lambda n: None),
    "sequence": lambda: (
        SequenceNet(),
        (6, 4),
        lambda n: {"text": {"mask": mask(n)}, "speed": torch.linspace(0, 1, n)[:, None].double().expand(n, 16)},
    ),
}


def filled(net):
    """Random numbers where adaLN-Zero has zeros, in float64."""
    for p in net.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.3)
    return net.double()


@pytest.mark.parametrize("name", NETS)
def test_modes_agree_on_loss_and_gradients(name):
    net, shape, cond_of = NETS[name]()
    filled(net).eval()
    x, noise = (torch.randn(12, *shape, dtype=torch.float64) for _ in range(2))
    t, r = torch.rand(2, 12, dtype=torch.float64).sort(0, descending=True).values
    r[:8] = t[:8]
    results = {}
    for mode in ("exact", "no_grad", "finite_difference"):
        net.zero_grad()
        objective = MeanFlow(net, derivative=mode, weighting=AdaptiveWeight(0.5))
        out = objective.loss(x, cond_of(12), noise=noise, t=t, r=r)
        out.loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        results[mode] = torch.cat([out.loss.detach()[None], gradient])
    assert relative(results["no_grad"], results["exact"]) < 1e-12
    assert relative(results["finite_difference"], results["exact"]) < 1e-7


def test_finite_difference_has_second_order():
    net, shape, _ = NETS["mlp"]()
    filled(net)
    z, v = torch.randn(2, 4, *shape, dtype=torch.float64)
    t, r = torch.tensor([0.9, 0.5, 0.6, 0.7]).double(), torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    step = (v, torch.ones_like(t), torch.zeros_like(r))
    _, exact = jvp(net, z, t, r, None, step)
    errors = [(central_difference(net, z, t, r, None, step, h)[1] - exact).norm() for h in (0.02, 0.01)]
    assert 3.8 < errors[0] / errors[1] < 4.2


@pytest.mark.parametrize("mode", ["no_grad", "finite_difference"])
def test_dropout_has_one_mask_in_prediction_and_derivative(mode):
    """With u linear in the mask, du/dt of a masked row is masked in the same places."""

    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, z, *, t, r, cond=None):
            return F.dropout(self.weight * (z + t[:, None] - r[:, None]), 0.5)

    z, v = torch.randn(8, 64) + 5, torch.ones(8, 64)
    u, dudt = predict(Dropped(), z, v, t=torch.full((8,), 0.9), r=torch.zeros(8), mode=mode)
    assert torch.equal(u.detach() == 0, dudt == 0) and 0.3 < float((u == 0).float().mean()) < 0.7


def test_evaluating_restores_every_mode():
    net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with evaluating(net):
        assert not any(m.training for m in net.modules())
    assert [m.training for m in net.modules()] == [True, True, False]


def test_layer_without_forward_derivative_is_named():
    class Sampler(nn.Module):
        def forward(self, z, t):
            grid = z.new_zeros(len(z), 8, 8, 2) + t[:, None, None, None]
            return F.grid_sample(z, grid, align_corners=False)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ModuleDict({"warp": Sampler()})
            self.w = nn.Parameter(torch.ones(()))

        def forward(self, z, *, t, r, cond=None):
            return self.w * self.inner["warp"](z, t - r)

    objective = MeanFlow(Net(), times=Times(share_equal=0.0))
    with pytest.raises(RuntimeError, match=r"inner\.warp \(Sampler\).*finite_difference"):
        objective(torch.randn(4, 1, 8, 8))
    objective = MeanFlow(Net(), times=Times(share_equal=0.0), derivative="finite_difference")
    assert objective(torch.randn(4, 1, 8, 8)).loss.isfinite()


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="exact, no_grad, finite_difference"):
        MeanFlow(MLP((2,)), derivative="exakt")
