"""Where the other end of the path comes from: sources, pairs (x, e), and observations beside it."""

import pytest
import torch
from torch import nn

from meanflow import FlowMatching, MeanFlow, Times, noise_from_seeds, sample
from meanflow.core import GaussianSource, RowSource, UniformSource, interpolate
from meanflow.core.conditions import null_like, shown, without_noise
from meanflow.nets import MLP, DiT, SequenceDiT, UNet


class Recorder(nn.Module):
    """A network that keeps what it was called with."""

    shape, null = (3,), None

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = nn.Linear(5, 3), []

    def forward(self, z, *, t, r, cond=None):
        self.calls.append((getattr(z, "primal", z).detach().clone(), getattr(t, "primal", t).detach().clone(), cond))
        return self.inner(torch.cat([z, t[:, None], r[:, None]], 1))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def loss(net, x, cond=None, **options):
    out = MeanFlow(net, **options)(x, cond, generator=seeded())
    return out.loss


@pytest.mark.parametrize("kind", [MeanFlow, FlowMatching])
def test_the_gaussian_source_is_no_source_to_the_last_bit(kind):
    net, x = MLP((3,), width=8, depth=1), torch.randn(16, 3)
    found = [kind(net, source=source)(x, generator=seeded()).loss for source in (None, GaussianSource())]
    assert torch.equal(*found)
    assert not torch.equal(found[0], kind(net, source=GaussianSource(std=2.0))(x, generator=seeded()).loss)
    assert torch.equal(noise_from_seeds([3, 5], (3,)), noise_from_seeds([3, 5], (3,), source=GaussianSource()))


def test_pairs_are_the_ends_of_the_path():
    net, x, e = Recorder(), torch.randn(8, 3), torch.randn(8, 3)
    MeanFlow(net, times=Times(share_equal=1.0))(x, {"noise": e, "label": torch.arange(8)}, generator=seeded())
    z, t, cond = net.calls[0]
    assert torch.equal(z, interpolate(x, e, t)) and torch.equal(cond, torch.arange(8))
    net.calls.clear()
    MeanFlow(net, times=Times(share_equal=0.0))(x, {"noise": e}, generator=seeded())
    z, t, cond = net.calls[0]
    assert torch.equal(z, interpolate(x, e, t)) and cond is None


def test_pairs_change_the_loss_as_given_noise_does():
    net, x, e, t = MLP((3,), width=8, depth=1), *torch.randn(2, 8, 3), torch.rand(8)
    r = t / 2
    objective = MeanFlow(net)
    given = objective.loss(x, {"noise": torch.full_like(e, 7.0)}, noise=e, t=t, r=r).loss
    assert torch.equal(given, objective.loss(x, noise=e, t=t, r=r).loss)
    assert not torch.equal(loss(net, x), loss(net, x, {"noise": e}))


def test_a_uniform_source_has_mean_zero_and_variance_one():
    e = UniformSource()(torch.zeros(20_000, 5), None, seeded())
    # 4 standard errors: sqrt(1 / n) of the mean, sqrt((9/5 - 1) / n) of the variance.
    n = e.numel()
    assert abs(float(e.mean())) < 4 * n**-0.5 and abs(float(e.var()) - 1) < 4 * (0.8 / n) ** 0.5
    assert float(e.abs().max()) <= 3**0.5


def test_rows_of_a_second_set_are_what_comes_out():
    rows = torch.arange(12.0).reshape(4, 3)
    e = RowSource(rows)(torch.zeros(100, 3), None, seeded())
    assert torch.cdist(e, rows).min(1).values.max() == 0 and len(e.unique(dim=0)) == 4
    assert MeanFlow(MLP((3,), width=8, depth=1), source=RowSource(rows)).arguments()["source"]["shape"] == [4, 3]


def test_a_source_may_depend_on_the_condition_and_the_samples():
    net, x = Recorder(), torch.randn(8, 3)

    def near(x, cond, generator):
        return cond["observation"] + 0.1 * torch.randn(x.shape, generator=generator)

    MeanFlow(net, source=near, times=Times(share_equal=1.0))(x, {"observation": x + 5}, generator=seeded())
    z, t, _ = net.calls[0]
    e = (z - (1 - t[:, None]) * x) / t[:, None]
    assert float((e - x - 5).abs().max()) < 1
    assert MeanFlow(net, source=near).arguments()["source"].endswith("near")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda x, cond, generator: x[:2], r"shape and dtype of x, torch.float32 \[8, 3\], but returned"),
        (lambda x, cond, generator: x.double(), "torch.float64"),
        (lambda x, cond, generator: 0.0, "returned float"),
    ],
)
def test_sources_that_return_something_else_are_refused(source, message):
    with pytest.raises(ValueError, match=message):
        loss(Recorder(), torch.randn(8, 3), source=source)


def test_what_is_no_source_is_refused():
    with pytest.raises(ValueError, match=r"source\(x, cond, generator\), got str"):
        MeanFlow(Recorder(), source="uniform")
    with pytest.raises(ValueError, match="e of the shape of x"):
        loss(Recorder(), torch.randn(8, 3), {"noise": torch.zeros(8, 2)})
    with pytest.raises(ValueError, match="got str"):
        loss(Recorder(), torch.randn(8, 3), {"noise": "uniform"})
    for wrong in (lambda: GaussianSource(std=0), lambda: UniformSource(1, 0), lambda: RowSource(torch.zeros(3))):
        with pytest.raises(ValueError, match="needs"):
            wrong()


def test_a_trained_field_starts_from_its_source():
    """Pairs (x, e = x + 3) and nothing at random: the field is constant, and one call gives x back exactly."""
    torch.manual_seed(1)
    net = MLP((2,), width=32, depth=1)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    objective = MeanFlow(net)
    for _ in range(300):
        x = torch.randn(64, 2)
        optimizer.zero_grad()
        objective(x, {"noise": x + 3}).loss.backward()
        optimizer.step()
    x = torch.randn(256, 2)
    found = sample(net, x + 3, {"noise": x})  # an e in the condition is not handed to the network
    assert float((found - x).square().mean().sqrt()) < 0.2
    assert float((sample(net, torch.randn(256, 2)) - x).square().mean().sqrt()) > 1


NETS = {
    "dit": lambda o: DiT((1, 8, 8), patch=4, width=16, depth=1, heads=2, classes=2, observation=2 if o else None),
    "unet": lambda o: UNet(
        (1, 8, 8), channels=8, multipliers=(1, 1), blocks=1, attention=(), classes=2, observation=2 if o else None
    ),
    "sequence": lambda o: SequenceDiT(
        (1, 8), patch=4, width=16, depth=1, heads=2, classes=2, observation=2 if o else None
    ),
    "mlp": lambda o: MLP((1, 8), width=16, depth=1, classes=2, observation=16 if o else None),
}


def filled(net):
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return net


@pytest.mark.parametrize("kind", NETS)
def test_an_observation_is_seen_and_reaches_weights(kind):
    net = filled(NETS[kind](True))
    z, t = torch.randn(2, *net.shape), torch.full((2,), 0.5)
    seen = torch.randn(2, 2, *net.shape[1:])
    label = torch.tensor([0, 1])
    u = net(z, t=t, r=t, cond={"label": label, "observation": seen})
    assert u.shape == z.shape
    changed = net(z, t=t, r=t, cond={"label": label, "observation": seen.flip(0)})
    assert float((u - changed).abs().max()) > 1e-3
    x = torch.randn(8, *net.shape)
    cond = {"label": torch.arange(8) % 2, "observation": torch.randn(8, 2, *net.shape[1:])}
    MeanFlow(net)(x, cond).loss.backward()
    first = net.tokens if hasattr(net, "tokens") else net.first
    assert first.weight.grad is not None and bool(first.weight.grad.any())


@pytest.mark.parametrize("kind", NETS)
def test_observations_that_do_not_fit_are_refused(kind):
    z, t = torch.zeros(2, *NETS[kind](False).shape), torch.full((2,), 0.5)
    label = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="build it with observation="):
        NETS[kind](False)(z, t=t, r=t, cond={"label": label, "observation": z})
    for cond in (label, {"label": label, "observation": z}):
        with pytest.raises(ValueError, match="needs cond\\['observation'\\] of shape"):
            NETS[kind](True)(z, t=t, r=t, cond=cond)


def test_what_a_condition_shows_and_what_stays():
    label, seen, mask = torch.tensor([0, 1]), torch.zeros(2, 1), torch.ones(2, 3, dtype=torch.bool)
    cond = {"label": label, "observation": seen, "mask": mask}
    assert torch.equal(shown(cond), label) and shown({"mask": mask}) is None
    none = null_like(cond, 5)
    assert none["label"].tolist() == [5, 5] and none["observation"] is seen and none["mask"] is mask
    assert null_like(cond, {"label": 5, "observation": 9.0})["observation"].tolist() == [[9.0], [9.0]]
    assert without_noise({"noise": seen, "label": label}) == (label, seen)
    assert without_noise({"noise": seen})[0] is None and without_noise(label) == (label, None)
