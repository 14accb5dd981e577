"""Sequences of different lengths: padding contributes nothing, and a padded batch is the unpadded ones."""

import pytest
import torch
from torch import nn

import meanflow.objectives.meanflow as room
from meanflow import AdaptiveWeight, FlowMatching, Guidance, MeanFlow, sample
from meanflow.core import Pairs
from meanflow.core.masks import mask_from_lengths, mask_of, masked
from meanflow.nets import MLP, SequenceDiT

LENGTHS = [13, 5, 8, 9]
T = torch.tensor([0.5, 0.9, 0.7, 0.8], dtype=torch.float64)
R = torch.tensor([0.5, 0.2, 0.7, 0.1], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 1])
DROPPED = torch.tensor([True, False, False, True])
MASK = mask_from_lengths(LENGTHS)


class Convolution(nn.Module):
    """A network that looks over the edge of what exists, and knows nothing of masks."""

    shape, null = (2, 13), 3

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.times, self.table = nn.Conv1d(2, 2, 3, padding=1), nn.Linear(2, 2), nn.Embedding(4, 2)

    def forward(self, z, *, t, r, cond=None):
        label = cond["label"] if isinstance(cond, dict) else cond
        shift = self.times(torch.stack([t, r], 1)) + self.table(label)
        return self.inner(z) + shift[:, :, None]


def transformer():
    net = SequenceDiT((2, 13), patch=4, width=16, depth=2, heads=2, classes=3)
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return net.double()


def drawn():
    return torch.randn(2, 4, 2, 13, dtype=torch.float64)


def run(objective, x, noise, cond, rows=slice(None)):
    """Loss and gradients of some rows."""
    objective.zero_grad()
    guided = {"dropped": DROPPED[rows]} if getattr(objective, "guidance", None) else {}
    times = {"t": T[rows]} if isinstance(objective, FlowMatching) else {"t": T[rows], "r": R[rows]}
    out = objective.loss(x, cond, noise=noise, **times, **guided)
    out.loss.backward()
    return out, torch.cat([p.grad.flatten() for p in objective.net.parameters() if p.grad is not None])


def padded(objective, x, noise):
    return run(objective, x, noise, {"label": LABELS, "mask": MASK})


def unpadded(objective, x, noise):
    """Mean over the sequences, each alone and as long as it is."""
    loss, gradient = 0.0, 0.0
    for i, n in enumerate(LENGTHS):
        rows = slice(i, i + 1)
        out, g = run(objective, x[rows, :, :n], noise[rows, :, :n], LABELS[rows], rows)
        loss, gradient = loss + out.loss.detach() / 4, gradient + g / 4
    return loss, gradient


OBJECTIVES = {
    # p = 1 would make every loss about 1, whatever is in it.
    "plain": lambda net: MeanFlow(net, weighting=AdaptiveWeight(p=0.5)),
    "guided": lambda net: MeanFlow(net, weighting=AdaptiveWeight(p=0.5), guidance=Guidance(scale=2.0, mix=0.3)),
    "no_grad": lambda net: MeanFlow(net, weighting=AdaptiveWeight(p=0.5), derivative="no_grad"),
    "flow": lambda net: FlowMatching(net, weighting=AdaptiveWeight(p=0.5)),
}


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("net", [transformer, lambda: Convolution().double()])
def test_padding_contributes_nothing(kind, net):
    objective, (x, noise) = OBJECTIVES[kind](net()), drawn()
    before, gradient = padded(objective, x, noise)
    here = MASK[:, None]
    other = padded(objective, torch.where(here, x, float("nan")), torch.where(here, noise, 9e9))
    assert torch.equal(before.loss, other[0].loss) and torch.equal(gradient, other[1])
    assert all(torch.equal(before.parts[name], value) for name, value in other[0].parts.items())


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_padded_batch_is_the_unpadded_ones(kind):
    objective, (x, noise) = OBJECTIVES[kind](transformer()), drawn()
    out, gradient = padded(objective, x, noise)
    loss, alone = unpadded(objective, x, noise)
    assert abs(float(out.loss.detach() - loss)) < 1e-12 and float((gradient - alone).abs().max()) < 1e-12


@pytest.mark.parametrize("kind", ["plain", "guided"])
def test_the_derivative_has_no_tangent_where_nothing_is(kind):
    """A convolution sees beyond the edge: only a velocity that is zero there leaves du/dt right."""
    objective, (x, noise) = OBJECTIVES[kind](Convolution().double()), drawn()
    out, gradient = padded(objective, x, noise)
    loss, alone = unpadded(objective, x, noise)
    assert abs(float(out.loss.detach() - loss)) < 1e-12 and float((gradient - alone).abs().max()) < 1e-12


def test_a_tangent_that_leaks_is_noticed(monkeypatch):
    """The mutant: the guided velocity is left as it is where nothing exists."""
    monkeypatch.setattr(room, "_rows", lambda mask, rows: None)
    monkeypatch.setattr(room, "_parts", lambda *_: {})
    objective, (x, noise) = OBJECTIVES["guided"](Convolution().double()), drawn()
    assert abs(float(padded(objective, x, noise)[0].loss.detach() - unpadded(objective, x, noise)[0])) > 1e-4


def test_a_loss_without_the_mask_is_noticed(monkeypatch):
    """The mutant: the error of what does not exist is counted, so the adaptive weight of a row changes."""
    monkeypatch.setattr(room, "masked", lambda x, mask: x)
    objective, (x, noise) = OBJECTIVES["plain"](transformer()), drawn()
    other = torch.where(MASK[:, None], x, x + 1)
    assert not torch.equal(padded(objective, x, noise)[0].loss, padded(objective, other, noise)[0].loss)


def test_the_adaptive_weight_counts_what_exists():
    objective, (x, noise) = MeanFlow(transformer(), weighting=AdaptiveWeight(p=1.0, c=1e-3)), drawn()
    out = padded(objective, x, noise)[0]
    error = out.rows["squared_error"]
    assert torch.allclose(out.loss, (error / (error + 1e-3)).mean()) and torch.allclose(
        out.parts["weight"].double(), (1 / (error + 1e-3)).mean()
    )
    early = torch.tensor([0, 2])
    values = torch.tensor(LENGTHS)[early] * 2
    assert float(out.parts["mse_v"]) == pytest.approx(float((out.rows["v_error"][early] / values).mean()))


def test_samples_of_a_length_are_those_of_the_sequence_alone():
    net, noise = transformer(), torch.randn(4, 2, 13, dtype=torch.float64)
    together = sample(net, noise, {"label": LABELS, "mask": MASK}, steps=3)
    for i, n in enumerate(LENGTHS):
        alone = sample(net, noise[i : i + 1, :, :n], LABELS[i : i + 1], steps=3)
        assert float((together[i : i + 1, :, :n] - alone).abs().max()) < 1e-12
        assert not together[i, :, n:].any()


def test_attention_that_looks_at_padding_is_noticed():
    """The mutant: a network that takes zeros for data."""
    net, noise = transformer(), torch.randn(4, 2, 13, dtype=torch.float64)
    ignoring = sample(net, masked(noise, MASK[:, None]), LABELS)
    alone = sample(net, noise[1:2, :, :5], LABELS[1:2])
    assert float((ignoring[1:2, :, :5] - alone).abs().max()) > 1e-4


def test_one_graph_holds_a_masked_step():
    """What torch.compile traces is the eager step; its code generation is left out, which knows nothing of masks."""
    net = SequenceDiT((2, 12), patch=4, width=16, depth=1, heads=2)
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    objective = MeanFlow(net)
    x, noise = torch.randn(2, 4, 2, 12)
    times = Pairs(T.float(), torch.minimum(R, T).float().index_fill(0, torch.tensor([1]), 0.9), 2)
    given = (x, {"mask": mask_from_lengths([12, 5, 8, 1])}, noise, times, None, 0)
    traced = torch.compile(objective._loss, fullgraph=True, dynamic=False, backend="aot_eager")
    found = [function(*given) for function in (objective._loss, traced)]
    assert torch.allclose(found[0].output.loss, found[1].output.loss, rtol=1e-5)
    assert torch.allclose(found[0].dudt, found[1].dudt, atol=1e-5)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (MASK.float(), "must be bool"),
        (MASK[:, :5], r"\[4, 13\]; got torch.bool \[4, 5\]"),
        (MASK[0], r"got torch.bool \[13\]"),
        ([True], "got list"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        mask_of({"mask": mask}, torch.zeros(4, 2, 13))


def test_lengths_that_do_not_fit_are_refused():
    for lengths in ([0, 3], [4, 9], [[1]]):
        with pytest.raises(ValueError, match="from 1 to 8"):
            mask_from_lengths(lengths, 8)


def test_a_mask_of_single_values_is_for_networks_of_any_kind():
    """Vectors of which some numbers are missing: the loss has no error there."""
    net, (x, noise) = MLP((3,), width=8, depth=1), torch.randn(2, 4, 3)
    mask = torch.tensor([[True, True, False]] * 4)
    out = FlowMatching(net).loss(x, {"mask": mask}, noise=noise, t=torch.full((4,), 0.5))
    other = FlowMatching(net).loss(x + ~mask, {"mask": mask}, noise=noise, t=torch.full((4,), 0.5))
    assert torch.equal(out.loss, other.loss)
