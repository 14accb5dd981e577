"""Dual tensors against torch.func.jvp, function by function, and the way out where they cannot follow."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from meanflow import MeanFlow, Times
from meanflow.bench import flops
from meanflow.core import derivative, dual
from meanflow.core.derivative import jvp
from meanflow.core.dual import Dual, NotDual, attention_tangent, dual_jvp

A, B = torch.randn(3, 4, 6, dtype=torch.float64), torch.randn(3, 4, 6, dtype=torch.float64)
W, V = torch.randn(5, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
IMAGE = torch.randn(2, 4, 6, 6, dtype=torch.float64)
KERNEL = torch.randn(4, 4, 3, 3, dtype=torch.float64)

FUNCTIONS = {
    "arithmetic": lambda x: 2 * x - x / 3 + (1 - x) * x - B * x + 1 / (x.square() + 1) + x**2 - (-x),
    "broadcasting": lambda x: x[:, :1] + B + x.sum(-1, keepdim=True) - V,
    "products": lambda x: x @ x.mT + torch.einsum("bij,bkj->bik", x, B) + torch.bmm(B, x.transpose(1, 2)),
    "squares": lambda x: (
        x * x + torch.mul(x, x) + torch.einsum("bij,bij->bij", x, x) + x * (x * x).mean(-1, keepdim=True)
    ),
    "one tensor in two places": lambda x: (
        x @ x.mT @ x + torch.kron(x[0, :2, :2], x[0, :2, :2]).sum() + torch.outer(x[0, 0], x[0, 0]).sum()
    ),
    "keywords": lambda x: torch.mul(x, other=x.sin()) + torch.mul(input=x, other=B) + torch.matmul(x.mT, other=x).sum(),
    "keyword inputs": lambda x: (
        torch.cat(tensors=[x, B]).sum() + F.linear(input=x, weight=W).sum() + x.mean(dim=-1, keepdim=True)
    ),
    "where broadcasts": lambda x: torch.where(A[0] > 0, x[0], torch.zeros(2, 4, 6).double()).sum() + x,
    "where as a method": lambda x: B.where(B > 0, x),
    "integers and bools": lambda x: x * x.to(torch.bool) + x * x.to(torch.int64) + x * x.type(torch.long),
    "diff": lambda x: torch.diff(x, prepend=torch.ones(3, 4, 1).double()),
    "linear": lambda x: F.linear(x, W, torch.ones(5).double()) + F.linear(x, W),
    "shapes": lambda x: torch.cat([x.reshape(3, -1).chunk(2, 1)[0], x.flatten(1), B.flatten(1)], 1).unflatten(
        1, (3, -1)
    ),
    "stack": lambda x: torch.stack([x.unbind(1)[0], B[:, 0], x[:, 1]], 1).permute(2, 0, 1).contiguous().flip(0),
    "activations": lambda x: (
        F.gelu(x, approximate="tanh") + F.silu(x) + x.tanh() + x.sigmoid() + F.softplus(x) + F.relu(x)
    ),
    "softmax": lambda x: x.softmax(-1) * x.log_softmax(1) + x.exp().cumsum(1) + x.cos() * x.sin(),
    "norms": lambda x: F.layer_norm(x, (6,), V, V) + F.rms_norm(x, (6,), V) + F.normalize(x, dim=-1),
    "where": lambda x: (
        torch.where(B > 0, x, 0.5) + torch.where(B > 0, B, x) + x.where(B < 1, B) + x.masked_fill(B > 1, 2)
    ),
    "clamp": lambda x: (
        x.clamp(-1, 1) + x.abs() + torch.maximum(x, B) + x.amax(-1, keepdim=True) + x.max(1).values[:, None]
    ),
    "pad": lambda x: F.pad(x, (1, 2), value=3.0) + F.pad(x, (1, 2), mode="replicate"),
    "type": lambda x: (x.float().double() + x.to(torch.float64) + x.type_as(B)).expand_as(B),
    "lerp": lambda x: torch.lerp(x, B, 0.3) + torch.addcmul(B, x, x, value=0.5) + torch.add(x, B, alpha=2),
    "indexing": lambda x: (
        x[[2, 0]][:, 1:, ::2]
        + x.gather(0, torch.zeros(2, 3, 3).long())
        + x.index_select(0, torch.tensor([1, 1]))[:, :3, :3]
    ),
    "constants": lambda x: x * x.detach() + torch.zeros_like(x) + x.new_ones(6) * x.shape[-1] * x.numel(),
    "attention": lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], B[:, None]),
    "causal": lambda x: F.scaled_dot_product_attention(x, B, x, is_causal=True, scale=0.7),
    "float mask": lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=B[:, :, :4]),
    "bool mask": lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(4, 4).tril().bool()),
    "rows without keys": lambda x: F.scaled_dot_product_attention(
        x, x, x, attn_mask=torch.eye(4).bool() & (torch.arange(4) > 0)
    ),
    "grouped heads": lambda x: F.scaled_dot_product_attention(
        x.reshape(1, 6, 4, 3), x.reshape(1, 6, 4, 3)[:, :2], x.reshape(1, 6, 4, 3)[:, :2], enable_gqa=True
    ),
}
IMAGE_FUNCTIONS = {
    "convolution": lambda x: (
        F.conv2d(x, KERNEL, torch.ones(4).double(), padding=1) + F.conv_transpose2d(x, KERNEL, padding=1)
    ),
    "group norm": lambda x: F.group_norm(x, 2, torch.ones(4).double() * 2, torch.ones(4).double()),
    "resizing": lambda x: (
        F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
        + F.pixel_shuffle(x, 2).mean((1, 2, 3)).reshape(2, 1, 1, 1)
    ),
    "fft": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 2),
}


def check(function, x):
    d = torch.randn_like(x)
    leaf = x.clone().requires_grad_()
    u, dudt = dual_jvp(function, (leaf,), (d,))
    wanted_u, wanted = torch.func.jvp(
        lambda x: _in_math(function, x),
        (x,),
        (d,),
    )
    assert torch.allclose(u, wanted_u, atol=1e-12) and torch.allclose(dudt, wanted, atol=1e-12)
    assert not dudt.requires_grad
    if u.requires_grad:
        gradient = torch.autograd.grad(u.square().sum(), leaf)[0]
        plain = x.clone().requires_grad_()
        assert torch.allclose(gradient, torch.autograd.grad(function(plain).square().sum(), plain)[0], atol=1e-10)


def _in_math(function, x):
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return function(x)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_sequences(name):
    check(FUNCTIONS[name], A)


@pytest.mark.parametrize("name", IMAGE_FUNCTIONS)
def test_functions_of_images(name):
    check(IMAGE_FUNCTIONS[name], IMAGE)


def _first_factor_only(func, args, kwargs):
    return Dual(func(*dual.primal_of(args)), func(args[0].tangent, args[1].primal))


def test_a_forgotten_product_rule_is_noticed(monkeypatch):
    """The mutant: products treated as linear in their first factor alone."""
    for name in ("matmul", "__matmul__"):
        monkeypatch.setitem(dual.RULES, name, _first_factor_only)
    with pytest.raises(AssertionError):
        check(lambda x: x @ x.mT, A)


@pytest.mark.parametrize("scores", [1, 40, 10**9])
def test_attention_in_pieces_is_attention_at_once(scores, monkeypatch):
    q, k, v, dq, dk, dv = torch.randn(6, 2, 3, 7, 4, dtype=torch.float64)
    whole = attention_tangent((q, k, v), (dq, dk, dv), is_causal=True)
    monkeypatch.setattr(dual, "SCORES_AT_A_TIME", scores)
    assert torch.allclose(attention_tangent((q, k, v), (dq, dk, dv), is_causal=True), whole, atol=1e-14)


@pytest.mark.parametrize("drop", [nn.Dropout(0.4), nn.Dropout2d(0.4)])
def test_dropout_has_one_mask_in_value_and_tangent(drop):
    x = torch.randn(8, 6, 5, 5) + 5
    torch.manual_seed(3)
    u, dudt = dual_jvp(lambda x: drop(2 * x), (x,), (torch.ones_like(x),))
    torch.manual_seed(3)
    assert torch.equal(u, drop(2 * x)) and torch.equal(u == 0, dudt == 0)
    drop.eval()
    assert torch.equal(dual_jvp(drop, (x,), (torch.ones_like(x),))[0], x)
    drop.train()


def test_recurrent_dropout_draws_once():
    net = nn.GRU(4, 4, num_layers=2, dropout=0.5, batch_first=True)
    x = torch.randn(3, 5, 4)
    torch.manual_seed(1)
    u, _ = dual_jvp(lambda x: net(x)[0], (x,), (torch.ones_like(x),))
    after = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.allclose(u, net(x)[0], atol=1e-6) and torch.equal(after, torch.get_rng_state())


def test_attention_dropout_has_one_mask():
    x = torch.randn(2, 2, 6, 8, dtype=torch.float64)
    f = lambda x: F.scaled_dot_product_attention(x, x, torch.eye(6, dtype=x.dtype).expand(2, 2, 6, 6), dropout_p=0.5)  # noqa: E731
    u, dudt = dual_jvp(f, (x,), (torch.randn_like(x),))
    assert torch.equal(u == 0, dudt == 0) and 0.2 < float((u == 0).double().mean()) < 0.8


class Odd(nn.Module):
    """Networks that dual tensors do not follow; torch.func.jvp does."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.first, self.last = kind, nn.Linear(4, 16), nn.Linear(16, 4)

    def forward(self, z, *, t, r, cond=None):
        h = self.first(z) + t[:, None] * 0.5 - r[:, None]
        if self.kind == "in place":
            h = h.mul_(1.5)
        if self.kind == "slice assignment":
            h = h.clone()
            h[:, :2] = h[:, 2:4] * 2
        if self.kind == "no_grad":
            with torch.no_grad():
                scale = h.square().mean()
            h = h * scale
        if self.kind == "autograd.Function":
            h = Scaled.apply(h)
        return self.last(F.silu(h))


class Scaled(torch.autograd.Function):
    """3 x, with the forward-mode rule that torch.func.jvp asks for."""

    @staticmethod
    def forward(x):
        return x * 3

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g * 3

    @staticmethod
    def jvp(ctx, d):
        return d * 3


@pytest.mark.parametrize("kind", ["in place", "slice assignment", "no_grad", "autograd.Function"])
def test_what_cannot_be_followed_goes_through_torch_func_jvp(kind):
    net = Odd(kind).double()
    z, v = torch.randn(2, 6, 4, dtype=torch.float64)
    t, r = torch.full((6,), 0.8).double(), torch.full((6,), 0.3).double()
    with pytest.raises(NotDual):
        dual_jvp(lambda z, t, r: net(z, t=t, r=r), (z, t, r), (v, torch.ones_like(t), None))
    u, dudt = jvp(net, z, t, r, None, (v, torch.ones_like(t), None))
    assert net in derivative._UNFOLLOWED
    _, numeric = derivative.central_difference(net, z, t, r, None, (v, torch.ones_like(t), None))
    assert torch.allclose(dudt, numeric, atol=1e-7)
    wanted = torch.autograd.grad(net(z, t=t, r=r).sum(), net.first.weight)[0]
    assert torch.allclose(torch.autograd.grad(u.sum(), net.first.weight)[0], wanted, atol=1e-12)


def test_an_autograd_function_is_noticed_without_gradients_too():
    """The derivative pass of no_grad mode; inside a Function the tangent of its own rule would be lost."""
    net = Odd("autograd.Function").double()
    z, v = torch.randn(2, 6, 4, dtype=torch.float64)
    t, r = torch.full((6,), 0.8).double(), torch.full((6,), 0.3).double()
    step = (v, torch.ones_like(t), None)
    with torch.no_grad():
        u, dudt = jvp(net, z, t, r, None, step)
        _, numeric = derivative.central_difference(net, z, t, r, None, step)
    assert not u.requires_grad and net in derivative._UNFOLLOWED
    assert torch.allclose(dudt, numeric, atol=1e-7)


def test_batch_norm_that_updates_its_statistics_is_refused_by_name():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, z, *, t, r, cond=None):
            return self.norm(z) * t[:, None] - r[:, None]

    net = Net()
    with pytest.raises(RuntimeError, match=r"norm \(BatchNorm1d\)"):
        MeanFlow(net, times=Times(share_equal=0.0))(torch.randn(8, 4))
    assert MeanFlow(net.eval(), times=Times(share_equal=0.0))(torch.randn(8, 4)).loss.isfinite()


def test_a_failed_attempt_leaves_the_random_state():
    class Net(Odd):
        def forward(self, z, **times):
            return super().forward(F.dropout(z, 0.5), **times)

    net = Net("in place")
    z = torch.randn(6, 4)
    given = (net, z, torch.full((6,), 0.8), torch.full((6,), 0.3), None, (torch.ones_like(z), None, None))
    torch.manual_seed(0)
    first = jvp(*given)[0]
    torch.manual_seed(0)
    assert torch.equal(first, jvp(*given)[0])


class Checkpointed(Odd):
    """The same network under non-reentrant activation checkpointing."""

    def forward(self, z, *, t, r, cond=None):
        inner = super().forward
        return checkpoint(lambda z, t, r: inner(z, t=t, r=r), z, t, r, use_reentrant=False)


def gradient_of(net, x, mode="exact"):
    loss = MeanFlow(net, derivative=mode)(x, generator=torch.Generator().manual_seed(0)).loss
    return torch.autograd.grad(loss, net.first.weight)[0]


@pytest.mark.parametrize("mode", ["exact", "no_grad"])
def test_checkpointing_works_with_both_modes(mode):
    """Nothing of the tangent is stored, so non-reentrant checkpointing recomputes what it expects."""
    net, plain, x = Checkpointed("plain"), Odd("plain"), torch.randn(8, 4)
    plain.load_state_dict(net.state_dict())
    found = gradient_of(net, x, mode)
    assert net not in derivative._UNFOLLOWED
    assert torch.allclose(found, gradient_of(plain, x), atol=1e-7)


LAYERS = {
    "Linear": (nn.Linear(8, 16), (4, 8)),
    "Conv1d": (nn.Conv1d(4, 8, 3, padding=1), (2, 4, 16)),
    "Conv2d": (nn.Conv2d(4, 8, 3, padding=1), (2, 4, 8, 8)),
    "Conv3d": (nn.Conv3d(4, 8, 3, padding=1), (2, 4, 4, 4, 4)),
    "ConvTranspose2d": (nn.ConvTranspose2d(4, 8, 3, padding=1), (2, 4, 8, 8)),
    "weight_norm": (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 3)), (2, 4, 8, 8)),
    "spectral_norm": (nn.utils.parametrizations.spectral_norm(nn.Linear(8, 16)).eval(), (4, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_linear_layer_costs_two_products_where_torch_takes_three(name):
    layer, shape = LAYERS[name]
    x, d = torch.randn(2, *shape)
    forward = flops(lambda: layer(x))
    assert flops(lambda: dual_jvp(layer, (x,), (d,))) == 2 * forward
    if not nn.utils.parametrize.is_parametrized(layer):
        assert flops(lambda: torch.func.jvp(layer, (x,), (d,))) > 2 * forward
