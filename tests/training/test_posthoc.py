"""Power-function averages against closed forms, and averages rebuilt after the run against those kept in it."""

import os
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import meanflow as mf
from meanflow.training import posthoc_ema
from meanflow.training.ema import EMA
from meanflow.training.profiles import Profile, exponent, inner, power_decay, relative_length, solve

# Outputs of NVlabs/edm2 (training/phema.py, std_to_exp and solve_posthoc_coefficients): exponents, and the last four
# of 16 coefficients for 0.07 from 0.05 and 0.10 in 8 snapshots.
EDM2_EXPONENTS = {0.05: 16.972198602303447, 0.07: 11.244939447857924, 0.10: 6.937203937601809}
EDM2_LAST_FOUR = [4.2397913310664982e-02, -1.0864094698057378e-01, 3.8708213040015665e-01, 6.9312741477016915e-01]
STEPS = 4096


def weights_of(sigma, steps):
    """The share of the weights of steps 1, ..., n in the average: the profile's integral over each step."""
    edges = (np.arange(steps + 1) / steps) ** (exponent(sigma) + 1)
    return np.diff(edges)


def kept(n, steps=STEPS, sigmas=(0.05, 0.10)):
    return [Profile(steps * i // n, sigma) for i in range(1, n + 1) for sigma in sigmas]


def combined(profiles, coefficients, steps=STEPS):
    total = np.zeros(steps)
    for p, c in zip(profiles, coefficients, strict=True):
        total[: p.steps] += c * weights_of(p.sigma, p.steps)
    return total


# Profiles


@pytest.mark.parametrize(("sigma", "gamma"), EDM2_EXPONENTS.items())
def test_exponents_are_those_of_edm2_and_give_the_length_back(sigma, gamma):
    assert exponent(sigma) == pytest.approx(gamma, rel=1e-13)
    assert relative_length(gamma) == pytest.approx(sigma, rel=1e-13)


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.25])
def test_the_relative_length_is_the_spread_of_the_profile(sigma):
    w, s = weights_of(sigma, 200_000), (np.arange(200_000) + 0.5) / 200_000
    assert np.sqrt((w * s**2).sum() - (w * s).sum() ** 2) == pytest.approx(sigma, rel=1e-6)


@pytest.mark.parametrize("sigma", [0.0, -0.1, 0.29, float("nan")])
def test_lengths_that_do_not_exist_are_refused(sigma):
    with pytest.raises(ValueError, match=r"between 0 and 0\.2887"):
        exponent(sigma)
    with pytest.raises(ValueError, match=r"0\.2887"):
        mf.Training(ema_power=(sigma,))


def test_inner_products_are_the_integrals():
    profiles = [Profile(1000, 0.05), Profile(1000, 0.2), Profile(400, 0.1)]
    fine = 400_000  # of 1000 steps

    def density(p):
        s, g = (np.arange(fine) + 0.5) * 1000 / fine, exponent(p.sigma)
        return np.where(s < p.steps, (g + 1) / p.steps * (s / p.steps) ** g, 0)

    drawn = np.stack([density(p) for p in profiles])
    assert np.allclose(inner(profiles, profiles), drawn @ drawn.T * 1000 / fine, rtol=1e-4)


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize(("sigma", "every"), [(0.05, 1), (0.1, 1), (0.25, 1), (0.1, 16)])
def test_a_kept_average_is_the_closed_form(sigma, every):
    """Of the weights 1, 2, ..., n: sum of k times the profile's integral over the k-th update."""
    module, n = Line(), 304
    ema = EMA(module, [0.9], every=every, power=[sigma])
    for step in range(1, n + 1):
        with torch.no_grad():
            module.weight.fill_(step)
        ema.update()
    updates = n // every
    closed = (weights_of(sigma, updates) * np.arange(1, updates + 1) * every).sum()
    assert float(ema.profiles[sigma]["weight"]) == pytest.approx(closed, rel=1e-12)
    # The mutant: the exponent without the one that is added to it.
    product = [(1 - every / k) ** exponent(sigma) for k in range(every, n + 1, every)]
    wrong = 0.0
    for k, decay in zip(range(every, n + 1, every), product, strict=True):
        wrong = decay * wrong + (1 - decay) * k
    assert abs(wrong - closed) > 0.5
    assert power_decay(exponent(sigma), every, every) == 0


# Rebuilding


def test_coefficients_are_those_of_edm2():
    found = solve(kept(8, 32768), Profile(32768, 0.07))
    assert np.allclose(found.coefficients[-4:], EDM2_LAST_FOUR, rtol=1e-8)


def test_coefficients_are_the_least_squares_of_the_weights_themselves():
    """Against numpy on the 4,096 weights of each kept average: the same fit but for the steps being finite."""
    profiles, wanted = kept(6), weights_of(0.075, STEPS)
    matrix = np.stack([np.pad(weights_of(p.sigma, p.steps), (0, STEPS - p.steps)) for p in profiles], axis=1)
    plain = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
    found = solve(profiles, Profile(STEPS, 0.075))
    assert np.allclose(found.coefficients * found.total, plain, atol=1e-5)
    left = np.linalg.norm(matrix @ found.coefficients - wanted) / np.linalg.norm(wanted)
    assert found.error == pytest.approx(left, rel=1e-3)


@pytest.mark.parametrize("sigma", [0.05, 0.10])
def test_a_kept_length_is_rebuilt_as_itself(sigma):
    found = solve(kept(16), Profile(STEPS, sigma))
    last = [float(p == (STEPS, sigma)) for p in kept(16)]
    assert np.allclose(found.coefficients, last, atol=1e-9) and found.error < 1e-6


@pytest.mark.parametrize(
    ("sigma", "least"), [(0.03, 0.9999), (0.04, 0.99999), (0.075, 0.999999), (0.15, 0.99999), (0.2, 0.9999)]
)
def test_rebuilt_profiles_correlate_with_ideal_ones(sigma, least):
    profiles = kept(32)
    found = solve(profiles, Profile(STEPS, sigma))
    rebuilt, ideal = combined(profiles, found.coefficients), weights_of(sigma, STEPS)
    correlation = (rebuilt @ ideal) / np.linalg.norm(rebuilt) / np.linalg.norm(ideal)
    assert correlation > least
    # Correlation of two vectors of nearly equal length and their distance are one thing.
    assert np.linalg.norm(rebuilt - ideal) / np.linalg.norm(ideal) == pytest.approx(found.error, rel=0.05)
    # The mutant: the nearer of the two kept ones in its place.
    nearest = max(weights_of(s, STEPS) @ ideal / np.linalg.norm(weights_of(s, STEPS)) for s in (0.05, 0.10))
    assert nearest / np.linalg.norm(ideal) < least


@pytest.mark.parametrize("sigma", [0.04, 0.075, 0.15])
def test_trajectories_are_averaged_as_by_an_average_that_was_kept(sigma):
    """theta(t) = t and random walks: the error is a small part of what the two kept averages differ by."""
    profiles = kept(32)
    found = solve(profiles, Profile(STEPS, sigma))
    walks = np.random.default_rng(0).standard_normal((20, STEPS)).cumsum(1)
    line = np.arange(1, STEPS + 1)[None] / STEPS * np.sqrt(STEPS)
    for paths in (line, walks):
        rebuilt, ideal = paths @ combined(profiles, found.coefficients), paths @ weights_of(sigma, STEPS)
        short, long = (paths @ weights_of(s, STEPS) for s in (0.05, 0.10))
        assert np.linalg.norm(rebuilt - ideal) < 1e-3 * np.linalg.norm(short - long)


def test_weights_that_do_not_change_come_out_as_they_are():
    """Undivided coefficients would shrink a long average from few snapshots by 13 %."""
    found = solve(kept(5), Profile(STEPS, 0.25))
    assert found.coefficients.sum() == pytest.approx(1, abs=1e-12) and found.total < 0.9


def test_nothing_is_rebuilt_from_nothing():
    with pytest.raises(ValueError, match="by step 10"):
        solve([Profile(20, 0.05)], Profile(10, 0.05))


# Runs


def fit(out, data=None, power=(0.05, 0.10), **options):
    torch.manual_seed(0)
    objective = mf.MeanFlow(mf.nets.MLP((2,), width=16, depth=1))
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)) if data is None else data
    settings = {"images": 1600, "batch": 16, "save_every": 160, "snapshot_every": 80, "loggers": (), "lr": 1e-2}
    return mf.fit(objective, x, out=out, ema_power=power, **{**settings, **options})


def snapshots(out):
    files = sorted((out / "averages").glob("*/*.safetensors"))
    return {f"{f.parent.name}/{f.name}/{n}": v for f in files for n, v in load_file(f).items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """100 steps with 20 snapshots of two averages."""
    out = tmp_path_factory.mktemp("run") / "run"
    fit(out)
    return out


def test_every_snapshot_of_a_run_is_kept_and_holds_the_averages_alone(run):
    folders = sorted((run / "averages").iterdir())
    assert [f.name for f in folders] == [f"{80 * i:012d}" for i in range(1, 21)]
    assert sorted(f.name for f in folders[3].iterdir()) == [
        "power-0.05.safetensors",
        "power-0.1.safetensors",
        "state.json",
    ]
    assert len(list((run / "checkpoints").iterdir())) == 2


def test_a_rebuilt_average_is_the_one_that_another_run_kept(run, tmp_path):
    """0.075 kept directly through the same training: within 0.5 % of the distance between the two kept averages."""
    fit(tmp_path / "direct", power=(0.075,))
    direct = load_file(tmp_path / "direct" / "averages" / f"{1600:012d}" / "power-0.075.safetensors")
    last = run / "averages" / f"{1600:012d}"
    short, long = (load_file(last / f"power-{s:g}.safetensors") for s in (0.05, 0.1))
    rebuilt = posthoc_ema(run, 0.075)
    assert rebuilt.images == 1600 and rebuilt.snapshots == 40 and rebuilt.error < 0.005

    def flat(state):
        return torch.cat([v.double().flatten() for v in state.values()])

    apart = float((flat(short) - flat(long)).norm())
    assert float((flat(rebuilt.state) - flat(direct)).norm()) < 0.005 * apart
    assert float((flat(short) - flat(direct)).norm()) > 0.2 * apart
    assert all(v.dtype == torch.float32 for v in rebuilt.state.values())


class Killing:
    """Points whose `after`-th batch kills the process that reads it."""

    def __init__(self, after):
        self.inner = mf.data.open_data(torch.randn(64, 2, generator=torch.Generator().manual_seed(0)))
        self.shape, self.classes, self.class_names, self.after = self.inner.shape, None, None, after

    def __len__(self):
        return len(self.inner)

    def batch(self, indices):
        x, cond = self.inner.batch(indices)
        if len(x) == 16:
            self.after -= 1
            if self.after == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return x, cond

    def description(self):
        return self.inner.description()


def test_a_killed_and_resumed_run_keeps_the_same_snapshots_to_the_last_bit(run, tmp_path):
    """Killed between two checkpoints, after a snapshot that the continuation comes to once more."""
    out = tmp_path / "run"
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        fit(out, Killing(38))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert 0 < len(list((out / "averages").glob("[0-9]*"))) < 20
    fit(out)
    ours, theirs = snapshots(out), snapshots(run)
    assert ours.keys() == theirs.keys() and len(ours) > 40
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(posthoc_ema(out, 0.07).state["net.last.weight"], posthoc_ema(run, 0.07).state["net.last.weight"])


def test_load_takes_a_rebuilt_average_and_one_after_some_images(run):
    found = mf.load(run, ema="power:0.075")
    assert torch.equal(found.last.weight, posthoc_ema(run, 0.075).state["net.last.weight"])
    early = mf.load(run, ema="power:0.075@800")
    assert torch.equal(early.last.weight, posthoc_ema(run, 0.075, 800).state["net.last.weight"])
    assert not torch.equal(early.last.weight, found.last.weight)
    assert torch.equal(mf.load(run, ema="0.999").last.weight, mf.load(run).last.weight)


@pytest.mark.parametrize(
    ("ema", "message"),
    [
        ("power:long", "power:LENGTH"),
        ("power:0.5", "between 0 and"),
        ("power:0.1@81", "nearest ones are after 80, 160, 240"),
        ("0.5", "power:0.075 rebuilds"),
        ("power", "power:0.075 rebuilds"),
    ],
)
def test_a_wrong_name_of_an_average_is_explained(run, ema, message):
    with pytest.raises(ValueError, match=message):
        mf.load(run, ema=ema)


def test_a_damaged_snapshot_is_left_out_with_a_warning(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    file = copy / "averages" / f"{800:012d}" / "power-0.05.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.warns(UserWarning, match=r"power-0\.05\.safetensors is damaged.*Leaving this snapshot out"):
        found = posthoc_ema(copy, 0.075)
    assert found.snapshots == 38


def test_a_poor_reconstruction_is_said(run):
    with pytest.warns(UserWarning, match="% away from the ideal"):
        posthoc_ema(run, 0.25, at=160)


def test_a_run_without_snapshots_says_how_to_have_them(tmp_path):
    fit(tmp_path / "run", power=(), snapshot_every=None, images=32)
    with pytest.raises(ValueError, match=r"--ema-power 0\.05 0\.1"):
        posthoc_ema(tmp_path / "run", 0.075)
    with pytest.raises(ValueError, match="give their lengths"):
        mf.Training(snapshot_every=100)
