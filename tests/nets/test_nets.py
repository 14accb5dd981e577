"""Networks: published sizes, shapes, limits."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from meanflow.bench import flops
from meanflow.nets import MLP, DiT, build
from meanflow.nets.layers import patchify, sincos_positions, unpatchify

# Millions of parameters; source: arXiv:2505.13447, table 4.
PUBLISHED = {"B/4": 131, "B/2": 131, "M/2": 308, "L/2": 459, "XL/2": 676}
# Computed from the architecture with two time embeddings and no learned variance.
EXACT = {"B/4": 131.2, "B/2": 131.1, "M/2": 308.0, "L/2": 459.1, "XL/2": 676.4}
# Thousand millions of multiply-adds of one forward pass, as the paper counts, computed from the architecture.
MULTIPLY_ADDS = {"B/4": 5.6, "B/2": 23.0, "M/2": 53.8, "L/2": 80.7, "XL/2": 118.6}


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameter_counts_are_the_papers(size):
    with torch.device("meta"):
        net = DiT.of_size(size, (4, 32, 32), classes=1000)
    count = sum(p.numel() for p in net.parameters()) / 1e6
    assert round(count) == PUBLISHED[size] and round(count, 1) == EXACT[size]


def forward(size):
    """One forward pass of a published size as a piece of work, on tensors without memory."""
    net = DiT.of_size(size, (4, 32, 32), classes=1000)
    z, t, label = torch.zeros(1, 4, 32, 32), torch.zeros(1), torch.zeros(1, dtype=torch.long)

    def work():
        with torch.no_grad():
            net(z, t=t, r=t, cond=label)

    return work


@pytest.mark.parametrize("size", MULTIPLY_ADDS)
def test_forward_flops_are_the_papers(size):
    with FakeTensorMode():
        assert round(flops(forward(size)) / 2e9, 1) == MULTIPLY_ADDS[size]


def test_flops_without_the_fused_attention_are_noticed():
    """The mutant: torch's own counter leaves out the fused attention of CPUs."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        forward("B/2")()
    assert round(counter.get_total_flops() / 2e9, 1) < MULTIPLY_ADDS["B/2"]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 16), (4, 12, 4)])
@pytest.mark.parametrize("conditioning", ["t,r", "t,t-r", "t,r,t-r", "t-r"])
def test_shapes_square_or_not(shape, conditioning):
    net = DiT(shape, patch=2, width=32, depth=1, heads=4, classes=5, conditioning=conditioning)
    t = torch.rand(3)
    assert net(torch.randn(3, *shape), t=t, r=t / 2, cond=torch.tensor([0, 4, 5])).shape == (3, *shape)
    assert net.null == 5


def test_fresh_dit_is_zero_and_its_blocks_are_identities():
    net = DiT((1, 8, 8), width=32, depth=2, heads=4)
    t = torch.rand(2)
    assert not net(torch.randn(2, 1, 8, 8), t=t, r=t).any()
    x, c = torch.randn(2, 16, 32), torch.randn(2, 32)
    assert torch.equal(net.blocks[0](x, c), x)


def test_patches_are_inverted_and_contiguous():
    z = torch.randn(2, 3, 8, 12)
    tokens = patchify(z, 4)
    assert tokens.shape == (2, 6, 48) and tokens.is_contiguous()
    assert torch.equal(unpatchify(tokens, 4, (3, 8, 12)), z)


def test_positions_differ_and_transpose_with_the_grid():
    wide, tall = sincos_positions(16, 2, 5), sincos_positions(16, 5, 2)
    assert len({tuple(row.tolist()) for row in wide}) == 10
    swapped = tall.reshape(5, 2, 2, 8).transpose(0, 1).flip(2).reshape(10, 16)
    assert torch.equal(wide, swapped)


@pytest.mark.parametrize("shape", [(2,), (7, 3), (1, 4, 4)])
def test_mlp_takes_any_shape_and_every_condition(shape):
    t = torch.rand(3)
    z = torch.randn(3, *shape)
    assert MLP(shape)(z, t=t, r=t).shape == z.shape
    assert MLP(shape, classes=4)(z, t=t, r=t, cond=torch.tensor([0, 3, 4])).shape == z.shape
    assert MLP(shape, condition_features=6)(z, t=t, r=t, cond=torch.randn(3, 6)).shape == z.shape


@pytest.mark.parametrize("net", [DiT((1, 8, 8), width=32, depth=1, heads=4, classes=2), MLP((3,), classes=2)])
def test_a_network_is_rebuilt_from_its_arguments(net):
    again = build(type(net).__name__, net.arguments)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiT((1, 8, 8), patch=3), r"divide height 8 and width 8, got 3; possible: \[1, 2, 4, 8\]"),
        (
            lambda: DiT((1, 8, 8), width=96, heads=5),
            r"heads must divide the width 96, got 5; possible: \[1, 2, 3",
        ),
        (lambda: DiT((8,)), r"\(C, H, W\)"),
        (lambda: DiT((1, 8, 8), width=30, heads=3), "divisible by 4"),
        (lambda: DiT.of_size("B/3", (1, 8, 8)), "patch 2, 4, 8"),
        (lambda: DiT.of_size("XXL/2", (1, 8, 8)), "S, B, M, L, XL"),
        (lambda: MLP((2,), classes=0), "at least 1"),
        (lambda: MLP((2,), classes=3, condition_features=3), "not several"),
        (lambda: MLP((2,), conditioning="r,t"), "t,t-r"),
        (lambda: build("GAN", {"shape": [1]}), "known: DiT, MLP, SequenceDiT, UNet"),
    ],
)
def test_impossible_networks_are_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("cond", "classes", "message"),
    [
        (None, 3, "needs class labels"),
        (torch.zeros(2, 1, dtype=torch.long), 3, r"integers \[2\]"),
        (torch.zeros(2), 3, r"integers \[2\]"),
        (torch.zeros(2, dtype=torch.long), None, "built without condition"),
    ],
)
def test_conditions_that_do_not_fit_are_explained(cond, classes, message):
    t = torch.rand(2)
    with pytest.raises(ValueError, match=message):
        MLP((2,), classes=classes)(torch.randn(2, 2), t=t, r=t, cond=cond)
