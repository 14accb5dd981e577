"""The loop: resuming, refusing, saving, schedules."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import meanflow as mf
from meanflow.training import CheckpointError, Training
from meanflow.training.log import VARYING
from meanflow.training.loop import learning_rate
from meanflow.training.run import read_config

SCRIPT = """
import sys, torch, meanflow as mf
torch.set_num_threads(1)
torch.manual_seed(0)
net = mf.nets.DiT((1, 8, 8), patch=4, width=32, depth=1, heads=4, classes=10)
net.blocks[0].down = torch.nn.Sequential(net.blocks[0].down, torch.nn.Dropout(0.1))
objective = mf.MeanFlow(net, guidance=mf.Guidance(scale=2.0, mix=0.5, drop_rows="coin"),
                        times=mf.Times(pick="coin"))
run = mf.fit(objective, "digits", out=sys.argv[1], images=int(sys.argv[2]), batch=64, save_every=640,
             log_every=640, grid_every=10**9, schedule="cosine", warmup=1280, ema=(0.9, 0.99))
print(run.images, run.stopped)
"""


def objective(**options):
    return mf.MeanFlow(mf.nets.MLP((2,), width=16, depth=1), **options)


def points(n=64):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0))


def start(out, images):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out), str(images)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(out, images):
    process = start(out, images)
    text, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return text


def newest(out):
    return sorted((Path(out) / "checkpoints").iterdir())[-1]


def weights(out):
    return {f.name: load_file(f) for f in sorted(newest(out).glob("*.safetensors"))}


def wait_for_checkpoint(process, out):
    deadline = time.time() + 120
    while not list(Path(out).glob("checkpoints/0*")):
        assert process.poll() is None and time.time() < deadline, process.stderr.read()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    finish(out, 4800)
    return out


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(kind, uninterrupted, tmp_path):
    """Law 7: weights, every average, the optimiser's moments, and the metrics."""
    out = tmp_path / "run"
    process = start(out, 4800)
    wait_for_checkpoint(process, out)
    process.send_signal(kind)
    text, _ = process.communicate(timeout=120)
    assert (kind.name in text) == (kind != signal.SIGKILL)
    assert int(newest(out).name) < 4800
    assert finish(out, 4800).split() == ["4800", "None"]
    ours, theirs = weights(out), weights(uninterrupted)
    assert ours.keys() == theirs.keys() and len(ours) == 4
    for file, tensors in theirs.items():
        assert all(torch.equal(tensors[name], ours[file][name]) for name in tensors), file
    drop = VARYING
    records = [
        [{k: v for k, v in json.loads(line).items() if k not in drop} for line in (o / "metrics.jsonl").open()]
        for o in (out, uninterrupted)
    ]
    assert records[0] == records[1] and len(records[0]) == 8


def test_a_resumed_run_with_other_draws_would_be_noticed(uninterrupted, tmp_path):
    """The mutant of law 7: the same run with another seed ends with other weights."""
    changed = SCRIPT.replace("batch=64,", "batch=64, seed=1,")
    out = tmp_path / "run"
    subprocess.run([sys.executable, "-c", changed, str(out), "4800"], check=True, capture_output=True)
    ours, theirs = weights(out)["weights.safetensors"], weights(uninterrupted)["weights.safetensors"]
    assert not all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_a_finished_run_is_left_alone(uninterrupted):
    before = newest(uninterrupted).stat().st_mtime_ns
    assert finish(uninterrupted, 4800).split() == ["4800", "None"]
    assert newest(uninterrupted).stat().st_mtime_ns == before


def test_run_folder_explains_itself(tmp_path):
    mf.fit(objective(), points(), out=tmp_path / "run", images=512, batch=64, log_every=128, grid_every=256)
    config = read_config(tmp_path / "run")
    assert config["net"]["arguments"]["width"] == 16 and config["data"]["length"] == 64
    assert config["objective"]["arguments"]["weighting"] == {"type": "AdaptiveWeight", "p": 1.0, "c": 0.001}
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["packages"]["torch"]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [r["images"] for r in records] == [128, 256, 384, 512]
    assert {"mse_v", "mse_u", "dudt_ratio", "weight", "grad_norm", "lr", "loss"} <= records[0].keys()
    assert len(list((tmp_path / "run" / "grids").glob("*.png"))) == 2
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    net = mf.load(tmp_path / "run")
    assert not net.training and mf.sample(net, torch.randn(3, 2)).shape == (3, 2)


def test_flow_matching_runs_load_as_euler_fields(tmp_path):
    flow = mf.FlowMatching(mf.nets.MLP((2,), width=16, depth=1))
    mf.fit(flow, points(), out=tmp_path / "run", images=128, batch=64)
    net = mf.load(tmp_path / "run")
    z, t = torch.randn(3, 2), torch.full((3,), 0.8)
    assert isinstance(net, mf.EulerField) and net.shape == (2,)
    assert torch.equal(net(z, t=t, r=t * 0), net(z, t=t, r=t))


def test_own_network_needs_an_instance_to_load(tmp_path):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mf.nets.MLP((2,), width=8, depth=1)

        def forward(self, z, *, t, r, cond=None):
            return self.inner(z, t=t, r=r)

    mf.fit(mf.MeanFlow(Own()), points(), out=tmp_path / "run", images=64, batch=64)
    with pytest.raises(ValueError, match="your own network Own, and no code is executed unasked"):
        mf.load(tmp_path / "run")
    assert mf.sample(mf.load(tmp_path / "run", net=Own()), torch.randn(3, 2)).shape == (3, 2)


def test_guidance_travels_with_the_weights(tmp_path):
    net = mf.nets.MLP((2,), width=8, depth=1, classes=2)
    guided = mf.MeanFlow(net, guidance=mf.Guidance(scale=2.0, mix=0.5, interval=(0.0, 0.8)))
    mf.fit(guided, (points(), torch.arange(64) % 2), out=tmp_path / "run", images=64, batch=64)
    loaded = mf.load(tmp_path / "run")
    assert loaded.guidance == guided.guidance
    with pytest.raises(ValueError, match="guide twice"):
        mf.sample(loaded, torch.randn(2, 2), torch.tensor([0, 1]), guidance=3.0)


def test_another_run_in_the_folder_is_named_by_what_differs(tmp_path):
    mf.fit(objective(), points(), out=tmp_path / "run", images=64, batch=64)
    with pytest.raises(ValueError, match=r"another run(.|\n)*training\.lr: 0\.001 -> 0\.002"):
        mf.fit(objective(), points(), out=tmp_path / "run", images=64, batch=64, lr=2e-3)
    with pytest.raises(ValueError, match=r"data\.fingerprint"):
        mf.fit(objective(), points() * 2, out=tmp_path / "run", images=64, batch=64)
    with pytest.raises(ValueError, match=r"weighting\.p: 1\.0 -> 0\.5"):
        mf.fit(objective(weighting=mf.AdaptiveWeight(0.5)), points(), out=tmp_path / "run", images=64, batch=64)


def test_a_run_of_constant_learning_rate_can_be_lengthened(tmp_path):
    """It ends as the longer run would have ended; with a cosine the length is part of the run."""
    for folder, lengths in (("short", (256, 512)), ("long", (512,))):
        for images in lengths:
            torch.manual_seed(0)
            mf.fit(objective(), points(), out=tmp_path / folder, images=images, batch=64)
    short, long = weights(tmp_path / "short"), weights(tmp_path / "long")
    assert all(torch.equal(short[f][n], long[f][n]) for f in long for n in long[f])
    mf.fit(objective(), points(), out=tmp_path / "cosine", images=256, batch=64, schedule="cosine")
    with pytest.raises(ValueError, match=r"training\.images: 256 -> 512"):
        mf.fit(objective(), points(), out=tmp_path / "cosine", images=512, batch=64, schedule="cosine")


def test_a_folder_with_other_things_is_not_written_to(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        mf.fit(objective(), points(), out=tmp_path, images=64, batch=64)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_damaged_weights_are_named_on_loading_and_the_run_goes_on_from_the_one_before(tmp_path):
    out = tmp_path / "run"
    mf.fit(objective(), points(), out=out, images=256, batch=64, save_every=64)
    file = newest(out) / "ema-0.999.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.warns(UserWarning, match=r"ema-0\.999\.safetensors is damaged.*checkpoint before it"):
        loaded = mf.load(out)
    before = load_file(sorted((out / "checkpoints").iterdir())[0] / "ema-0.999.safetensors")
    assert torch.equal(loaded.last.weight, before["net.last.weight"])
    with pytest.warns(UserWarning, match="damaged.*checkpoint before it"):
        run = mf.fit(objective(), points(), out=out, images=256, batch=64, save_every=64)
    assert run.images == 256 and mf.load(out)


@pytest.mark.parametrize("text", ["null", "[]", '{"step": 3, "sha256": null}', "{"])
def test_a_damaged_state_file_falls_back_too(text, tmp_path):
    out = tmp_path / "run"
    mf.fit(objective(), points(), out=out, images=128, batch=64, save_every=64)
    (newest(out) / "state.json").write_text(text)
    with pytest.warns(UserWarning, match="checkpoint before it"):
        assert mf.fit(objective(), points(), out=out, images=128, batch=64, save_every=64).images == 128


def test_tied_weights_are_saved_and_averaged_alike(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mf.nets.MLP((2,), width=8, depth=2)
            self.net.blocks[1].up.weight = self.net.blocks[0].up.weight

        def forward(self, z, *, t, r, cond=None):
            return self.net(z, t=t, r=r)

    mf.fit(mf.MeanFlow(Tied()), points(), out=tmp_path / "run", images=640, batch=64)
    average = load_file(newest(tmp_path / "run") / "ema-0.999.safetensors")
    raw = load_file(newest(tmp_path / "run") / "weights.safetensors")
    first, second = (f"net.net.blocks.{i}.up.weight" for i in (0, 1))
    assert torch.equal(average[first], average[second]) and not torch.equal(average[first], raw[first])


def test_no_whole_checkpoint_left_is_an_error(tmp_path):
    out = tmp_path / "run"
    mf.fit(objective(), points(), out=out, images=64, batch=64)
    (newest(out) / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint"), pytest.warns(UserWarning, match="missing"):
        mf.fit(objective(), points(), out=out, images=64, batch=64)


def test_disk_full_while_saving_keeps_the_last_good_state(tmp_path):
    """A process whose files may not grow beyond 100 kB: the real error of a full disk or quota."""
    out = tmp_path / "run"
    script = """
import resource, signal, sys, torch, meanflow as mf
torch.manual_seed(0)
net = mf.nets.MLP((2,), width=128, depth=2)
data = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
mf.fit(mf.MeanFlow(net), data, out=sys.argv[1], images=64, batch=64)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
mf.fit(mf.MeanFlow(net), data, out=sys.argv[1], images=int(sys.argv[2]), batch=64, save_every=64)
"""
    first = subprocess.run([sys.executable, "-c", script, str(out), "64"], capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    before = weights(out)
    second = subprocess.run([sys.executable, "-c", script, str(out), "128"], capture_output=True, text=True)
    assert second.returncode != 0
    assert "could not save checkpoint" in second.stderr and "untouched" in second.stderr
    after = weights(out)
    assert all(torch.equal(before[f][n], after[f][n]) for f in before for n in before[f])
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["000000000064"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(FloatingPointError, match="not finite"):
        mf.fit(objective(), points(), out=out, images=64 * 40, batch=64, lr=1e30, clip=None, save_every=64)
    for file in out.glob("checkpoints/*/*.safetensors"):
        assert all(bool(v.isfinite().all()) for v in load_file(file).values())


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (torch.full((4, 2), math.nan), {}, "NaN"),
        (torch.randn(4, 3), {}, r"shape \(3,\), the network takes \(2,\)"),
        ((torch.randn(4, 2), torch.tensor([0, 1])), {}, "4"),
        (torch.randn(4, 2), {"batch": 0}, "batch must be at least 1"),
        (torch.randn(4, 2), {"lr": -1.0}, "lr must be positive"),
        (torch.randn(4, 2), {"ema": (1.5,)}, r"\[0, 1\)"),
        (torch.randn(4, 2), {"device": "cuda:7"}, "sees no such device"),
    ],
)
def test_bad_input_is_found_before_anything_is_written(data, options, message, tmp_path):
    if "device" in options and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match=message):
        mf.fit(objective(), data, out=tmp_path / "run", images=64, **options)
    assert not (tmp_path / "run").exists()


def test_misspelt_options_get_the_nearest_name(tmp_path):
    with pytest.raises(TypeError, match="did you mean warmup"):
        mf.fit(objective(), points(), out=tmp_path / "run", warm_up=3)


def test_guidance_on_data_without_labels_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no labels"):
        mf.fit(objective(guidance=mf.Guidance(scale=2.0)), points(), out=tmp_path / "run")


def test_more_classes_in_the_data_than_in_the_network(tmp_path):
    net = mf.nets.MLP((2,), width=8, depth=1, classes=2)
    with pytest.raises(ValueError, match="4 classes, the network 2; build it with classes=4"):
        mf.fit(mf.MeanFlow(net), (points(), torch.arange(64) % 4), out=tmp_path / "run")


def test_learning_rate_follows_warm_up_and_schedule():
    s = Training(images=1000, batch=10, lr=1.0, warmup=100, schedule="cosine")
    rates = [learning_rate(s, step) for step in range(100)]
    assert rates[0] == pytest.approx(10 / 110) and rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5) and rates[99] < 0.001
    assert all(a <= b for a, b in itertools.pairwise(rates[:11]))
    assert learning_rate(Training(lr=0.3), 10**6) == 0.3


def test_training_does_not_disturb_the_callers_random_state(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    mf.fit(objective(), points(), out=tmp_path / "run", images=64, batch=64)
    net = torch.get_rng_state()
    torch.manual_seed(3)
    mf.nets.MLP((2,), width=16, depth=1)
    assert torch.equal(net, torch.get_rng_state()) and expected.shape == (1,)


def test_own_loop_needs_nothing_but_the_objective():
    mean_flow, x = objective(), points()
    optimizer = torch.optim.Adam(mean_flow.parameters(), lr=1e-3)
    before = mean_flow.net.last.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        mean_flow(x).loss.backward()
        optimizer.step()
    assert not torch.equal(before, mean_flow.net.last.weight)


def test_guidance_at_sampling_needs_a_field_without_condition(tmp_path):
    data = (points(), torch.arange(64) % 2)
    for drop in (0.0, 0.5):
        net = mf.nets.MLP((2,), width=8, depth=1, classes=2)
        mf.fit(mf.FlowMatching(net, drop=drop), data, out=tmp_path / f"run{drop}", images=64, batch=64)
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="never saw a dropped condition"):
        mf.sample(mf.load(tmp_path / "run0.0"), torch.randn(2, 2), labels, guidance=2.0)
    assert mf.sample(mf.load(tmp_path / "run0.5"), torch.randn(2, 2), labels, guidance=2.0).isfinite().all()


def test_loading_what_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        mf.load(tmp_path)
    assert os.listdir(tmp_path) == []
