"""The authors' PyTorch code for CIFAR-10: agreement with what it computed, and its files both ways.

The recording ran with dropout 0.1, the default of the authors' U-Net, and its masks were not kept. So an output of the
recording is one draw of a random field; it has to lie among draws of ours, as far from their mean as they do, and must
not lean towards any of the mistakes that could be made.
"""

import argparse
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from meanflow import MeanFlow, load, noise_from_seeds, sample
from meanflow.cli import main
from meanflow.convert import authors_torch, from_run, save_run
from meanflow.nets import UNet
from meanflow.nets.unet import SpatialAttention
from oracles import relative

DROPOUT, DRAWS = 0.1, 12


@pytest.fixture(scope="module")
def case():
    from conftest import SHARED

    folder = SHARED / "reference" / "cifar_unet"
    if not folder.is_dir():
        pytest.skip("the recorded outputs of the authors' code are not beside this checkout (../shared/reference)")
    arrays = {name: torch.from_numpy(np.asarray(value)) for name, value in np.load(folder / "case.npz").items()}
    return folder, arrays, authors_torch.read(folder / "checkpoint-last.pth")


def network(converted, state=None, kind=UNet):
    net = kind(**{**converted.net.arguments, "dropout": DROPOUT})
    net.load_state_dict(state or converted.weights)
    return net.train()


def draws(net, z, t, r, cond=None):
    """Fields under dropout, every network with the same masks: [DRAWS, B, C, H, W]."""
    fields = []
    with torch.no_grad():
        for seed in range(DRAWS):
            torch.manual_seed(seed)
            fields.append(net(z, t=t, r=r, cond=cond))
    return torch.stack(fields)


def away(found, fields):
    """How far an output lies from the mean of the draws, in units of what one of them does."""
    n = len(fields)
    # A draw is part of its mean, an output of the recording is not.
    own = (fields - fields.mean(0)).flatten(1).norm(dim=1).mean() * (n / (n - 1)) ** 0.5
    return float((found - fields.mean(0)).norm() / (own * (1 + 1 / n) ** 0.5))


def lean(found, fields, wrong):
    """0 when the output is a draw of `fields`, 1 when it is one of `wrong`."""
    step = wrong.mean(0) - fields.mean(0)
    return float(((found - fields.mean(0)) * step).sum() / step.square().sum())


def outputs(arrays):
    """Every recorded field, with what it was computed from."""
    z, t, r = arrays["z"], arrays["t"], arrays["r"]
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    return {
        "u": (arrays["u"], "net", (z, t, r)),
        "u_aug": (arrays["u_aug"], "net", (z, t, r, {"augment": arrays["aug"]})),
        "sample_1": (z - arrays["sample_1"], "net", (z, one, zero)),
        "sample_1_ema": (z - arrays["sample_1_ema"], "ema", (z, one, zero)),
    }


@pytest.mark.parametrize("name", ["u", "u_aug", "sample_1", "sample_1_ema"])
def test_a_recorded_field_is_one_of_our_draws(case, name):
    _, arrays, converted = case
    found, which, given = outputs(arrays)[name]
    state = converted.weights if which == "net" else converted.averages[0.9999]
    assert away(found, draws(network(converted, state), *given)) == pytest.approx(1, abs=0.04)


def left_over(case, t, r, order=("t", "t-r"), endpoint=True, sine_first=True, factor=1.0):
    """Share of the recorded gradient of the first embedding layer that times embedded in this way do not explain.

    That gradient is a sum over the batch of (something) x (input of the layer), whatever the dropout masks: its rows
    lie in the span of the 8 inputs, in a space of 64 dimensions.
    """
    folder, arrays, converted = case
    gradient = torch.from_numpy(np.load(folder / "grads.npz")["map_layer0.weight"]).double()
    half = 16
    frequencies = 10_000.0 ** -(torch.arange(half, dtype=torch.float64) / (half - endpoint))
    waves = []
    for name in order:
        angle = factor * {"t": t, "t-r": t - r, "r": r}[name].double()[:, None] * frequencies
        waves += [angle.sin(), angle.cos()] if sine_first else [angle.cos(), angle.sin()]
    inputs = torch.cat(waves, 1) + arrays["aug"].double() @ converted.weights["augment.weight"].double().T
    base = torch.linalg.qr(inputs.T)[0]
    return float((gradient - gradient @ base @ base.T).norm() / gradient.norm())


def test_times_are_embedded_as_in_the_authors_code(case):
    _, arrays, converted = case
    t, r = arrays["t"], arrays["r"]
    assert left_over(case, t, r) < 1e-5
    wrong = (
        {"order": ("t-r", "t")},
        {"order": ("t", "r")},
        {"endpoint": False},
        {"sine_first": False},
        {"factor": 1000.0},
    )
    for options in wrong:
        assert left_over(case, t, r, **options) > 1e-3, options
    # The network embeds them in this very way.
    inputs = []
    converted.net.hidden.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    converted.net(arrays["z"], t=t, r=r)
    angle = t.double()[:, None] * 10_000.0 ** -(torch.arange(16, dtype=torch.float64) / 15)
    assert torch.allclose(inputs[0][:, :32].double(), torch.cat([angle.sin(), angle.cos()], 1), atol=1e-6)


class Interleaved(UNet):
    """Query, key and value of a channel side by side, as in EDM."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        for module in self.modules():
            if isinstance(module, SpatialAttention):
                module.qkv.register_forward_hook(self._mixed)

    @staticmethod
    def _mixed(module, given, out):
        b, c, h, w = out.shape
        return out.reshape(b, c // 3, 3, h, w).transpose(1, 2).reshape(b, c, h, w)


class Rougher(UNet):
    """Resampling by nearest neighbours and means instead of the filter."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        for module in self.modules():
            if hasattr(module, "taps"):
                module.taps = F.pad(torch.full((1, 1, 2, 2), 0.25), (1, 1, 1, 1))


@pytest.mark.parametrize("mutant", [Interleaved, Rougher])
def test_the_recording_leans_towards_no_mistake(case, mutant):
    _, arrays, converted = case
    found, _, given = outputs(arrays)["u"]
    ours, wrong = draws(network(converted), *given), draws(network(converted, kind=mutant), *given)
    assert abs(lean(found, ours, wrong)) < 0.25
    assert lean(wrong[0], ours, wrong) > 0.75


def test_loss_and_gradients_are_among_our_draws(case):
    folder, arrays, converted = case
    net = network(converted)
    recorded = np.load(folder / "grads.npz")
    names = authors_torch.parameter_names(net)
    theirs = torch.cat([torch.from_numpy(recorded[names[n]]).flatten() for n, _ in net.named_parameters()])
    losses, gradients = [], []
    for seed in range(4):
        torch.manual_seed(seed)
        out = MeanFlow(net, **converted.objective).loss(
            arrays["x"], {"augment": arrays["aug"]}, noise=arrays["e"], t=arrays["t"], r=arrays["r"]
        )
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(out.loss, list(net.parameters()))]))
        losses.append(float(out.loss.detach()))
    spread = np.std(losses, ddof=1)
    assert abs(float(arrays["loss"]) - np.mean(losses)) < 4 * spread and spread < 0.01 * np.mean(losses)
    assert away(theirs, torch.stack(gradients)) == pytest.approx(1, abs=0.15)
    assert lean(theirs, torch.stack(gradients), torch.zeros(1, len(theirs))) < 0.2


def test_all_copies_and_settings_are_read(case):
    folder, _, converted = case
    model = torch.load(folder / "checkpoint-last.pth", weights_only=False)["model"]
    assert list(converted.averages) == [0.9999, 0.99995, 0.9996]
    for name, theirs in authors_torch.parameter_names(converted.net).items():
        assert torch.equal(converted.weights[name], model[f"net.{theirs}"])
        for copy, average in zip(("net_ema", "net_ema1", "net_ema2"), converted.averages.values(), strict=True):
            assert torch.equal(average[name], model[f"{copy}.{theirs}"])
    times = converted.objective["times"]
    assert (times.t.mean, times.r.mean, times.order, times.share_equal) == (-0.6, -4.0, "clip", 0.25)


def test_there_and_back_gives_the_same_file(case, tmp_path, capsys):
    folder = case[0]
    assert main(["convert", "authors-torch", str(folder / "checkpoint-last.pth"), str(tmp_path / "run")]) == 0
    assert "averages 0.9999, 0.99995, 0.9996" in capsys.readouterr().out
    assert main(["convert", "to-authors-torch", str(tmp_path / "run"), str(tmp_path / "back.pth")]) == 0
    before, after = (
        torch.load(file, weights_only=False) for file in (folder / "checkpoint-last.pth", tmp_path / "back.pth")
    )
    assert list(before["model"]) == list(after["model"])
    assert all(torch.equal(value, after["model"][name]) for name, value in before["model"].items())
    assert vars(before["args"]) == vars(after["args"]) and before["epoch"] == after["epoch"]
    # What was converted is a run like any other.
    net = load(tmp_path / "run")
    noise = noise_from_seeds([0, 1], net.shape)
    assert relative(sample(net, noise), sample(load(tmp_path / "run", ema=0.9999), noise)) == 0
    assert relative(sample(load(tmp_path / "run", raw=True), noise), sample(net, noise)) > 1e-3
    assert main(["sample", str(tmp_path / "run"), "--seeds", "0-3", "--out", str(tmp_path / "x.png")]) == 0


def test_the_state_of_the_optimiser_survives(case, tmp_path):
    """As the authors' program saves it: numbered in the order of their parameters."""
    _, _, converted = case
    net = converted.net
    moments = {
        name: {"exp_avg": torch.randn_like(p), "exp_avg_sq": torch.rand_like(p)} for name, p in net.named_parameters()
    }
    from dataclasses import replace

    authors_torch.write(replace(converted, moments=moments), tmp_path / "a.pth")
    state = torch.load(tmp_path / "a.pth", weights_only=False)["optimizer"]["state"]
    order = list(authors_torch.parameter_names(net))
    assert torch.equal(state[3]["exp_avg"], moments[order[3]]["exp_avg"])
    save_run(authors_torch.read(tmp_path / "a.pth"), tmp_path / "run")
    again = from_run(tmp_path / "run").moments
    assert all(torch.equal(again[n]["exp_avg_sq"], moments[n]["exp_avg_sq"]) for n in moments)


class Boom:
    def __reduce__(self):
        return print, ("executed",)


def spoiled(change):
    """The recorded file with its content changed."""

    def make(folder, out):
        content = torch.load(folder / "checkpoint-last.pth", weights_only=False)
        changed = change(content)
        torch.save(content if changed is None else changed, out)

    return make


def cut(folder, out):
    out.write_bytes((folder / "checkpoint-last.pth").read_bytes()[:100_000])


BAD = {
    "runs code": (spoiled(lambda c: c.update(args=Boom())), "could run code"),
    "runs code, plain pickle": (lambda _, out: out.write_bytes(pickle.dumps(Boom())), "could run code|damaged"),
    "cut off": (cut, "damaged"),
    "empty": (lambda _, out: out.write_bytes(b""), "damaged"),
    "another code": (
        spoiled(lambda c: {"state_dict": c["model"]}),
        r"no checkpoint of the authors' PyTorch code.*state_dict",
    ),
    "a tensor": (spoiled(lambda c: torch.zeros(3)), "holds a Tensor"),
    "an array missing": (
        spoiled(lambda c: c["model"].__delitem__("net_ema.dec.8x8_up.conv0.bias")),
        r"net_ema does not fit.*1 arrays are missing \(first: dec.8x8_up.conv0.bias\)",
    ),
    "an array too many": (spoiled(lambda c: c["model"].update({"net.extra": torch.ones(1)})), "unknown.*extra"),
    "another size": (
        spoiled(lambda c: c["model"].update({"net.map_layer1.weight": torch.ones(64, 63)})),
        r"embedding.weight of shape \[64, 63\].*\[64, 64\]",
    ),
    "arguments that are no values": (
        spoiled(lambda c: c.update(args=argparse.Namespace(model=torch.ones(1)))),
        "args.model is no plain value",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_explained_and_never_run(case, tmp_path, capsys, name):
    make, message = BAD[name]
    make(case[0], tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=message):
        authors_torch.read(tmp_path / "bad.pth")
    assert main(["convert", "authors-torch", str(tmp_path / "bad.pth"), str(tmp_path / "run")]) == 2
    assert "executed" not in capsys.readouterr().out and not (tmp_path / "run").exists()


def test_a_run_without_counterpart_is_not_written(case, tmp_path):
    from dataclasses import replace

    net = UNet((3, 16, 16), channels=16, blocks=1, classes=10)
    with pytest.raises(ValueError, match="without classes"):
        authors_torch.write(replace(case[2], net=net), tmp_path / "a.pth")
    assert not (tmp_path / "a.pth").exists()
