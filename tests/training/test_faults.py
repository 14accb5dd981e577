"""What breaks while training: each fault is made for real, is said, and the run goes on from a whole state."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import meanflow as mf
from meanflow.cli import main
from meanflow.training import CheckpointError
from meanflow.training.checkpoint import checkpoints
from meanflow.training.log import read_metrics
from meanflow.training.run import locked
from meanflow.training.signals import StopSignal
from meanflow.training.step import Streak

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def net():
    torch.manual_seed(0)
    return mf.nets.MLP((2,), width=16, depth=1)


def points(n=64):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0))


class Data:
    """Points; `on_batch` may do anything to a batch, given the number of batches read before."""

    def __init__(self, on_batch, x=None):
        self.inner, self.on_batch, self.read = mf.data.open_data(points() if x is None else x), on_batch, 0
        self.shape, self.classes, self.class_names = self.inner.shape, None, None

    def __len__(self):
        return len(self.inner)

    def batch(self, indices):
        x, cond = self.inner.batch(indices)
        if len(x) == 16:  # a training batch, not one of the checks before
            self.on_batch(x, torch.as_tensor(indices), self.read)
            self.read += 1
        return x, cond

    def description(self):
        return self.inner.description()


def fit(out, data=None, **options):
    settings = {"images": 160, "batch": 16, "save_every": 16, "keep": 20, "log_every": 16, "loggers": ()}
    return mf.fit(mf.MeanFlow(net()), points() if data is None else data, out=out, **{**settings, **options})


def tensors(out, images):
    folder = out / "checkpoints" / f"{images:012d}"
    return {f"{file.name}/{n}": v for file in sorted(folder.glob("*.safetensors")) for n, v in load_file(file).items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def poison(x, indices, read):
    """NaN in the fourth batch, in the third of its rows."""
    if read == 3:
        x[2] = torch.nan


# Not finite


def test_a_step_with_a_nan_is_left_out_and_counted(tmp_path):
    """Weights and moments after it are those before it, to the last bit; the run goes on, and ends finite."""
    assert fit(tmp_path / "run", Data(poison)).images == 160
    before, after = (tensors(tmp_path / "run", images) for images in (48, 64))
    same = [n for n in before if "ema" not in n]
    assert all(torch.equal(before[n], after[n]) for n in same) and len(same) > 20
    later = tensors(tmp_path / "run", 80)
    assert not torch.equal(later["weights.safetensors/net.last.weight"], after["weights.safetensors/net.last.weight"])
    records = read_metrics(tmp_path / "run")
    assert [r["skipped"] for r in records] == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert "loss" not in records[3] and all("loss" in r for r in records[:3] + records[4:])
    assert all(bool(v.isfinite().all()) for v in tensors(tmp_path / "run", 160).values())


def test_a_step_that_is_not_left_out_would_be_noticed(tmp_path, monkeypatch):
    """The mutant: the optimiser is not told, and the next weights are no longer finite."""
    adam = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (delattr(self, "found_inf"), adam(self))[1])
    with pytest.raises(FloatingPointError, match="weights are not finite"):
        fit(tmp_path / "run", Data(poison))
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "000000000048"


def test_a_run_with_a_step_left_out_resumes_bit_for_bit(tmp_path):
    fit(tmp_path / "whole", Data(poison), log_every=80)
    fit(tmp_path / "parts", Data(poison), images=64, log_every=80)
    fit(tmp_path / "parts", log_every=80)
    assert equal(tensors(tmp_path / "whole", 160), tensors(tmp_path / "parts", 160))
    skipped = [[r["skipped"] for r in read_metrics(tmp_path / n)][-2:] for n in ("whole", "parts")]
    assert skipped == [[1, 1], [1, 1]]


class Fragile(torch.nn.Module):
    """Has no value at late times: log(0.8 - t)."""

    def __init__(self):
        super().__init__()
        self.inner, self.late = mf.nets.MLP((2,), width=16, depth=1), Late()

    def forward(self, z, *, t, r, cond=None):
        return self.inner(z, t=t, r=r) + self.late(t)[:, None]


class Late(torch.nn.Module):
    def forward(self, t):
        return (0.8 - t).log()


@pytest.mark.parametrize("mode", ["exact", "no_grad"])
def test_too_many_in_a_row_stop_with_a_page_that_names_times_and_module(mode, tmp_path):
    out = tmp_path / "run"
    objective = mf.MeanFlow(Fragile(), derivative=mode)
    with pytest.raises(FloatingPointError, match=r"3 steps in a row.*diagnosis\.txt"):
        mf.fit(objective, points(), out=out, images=6400, batch=64, skip_limit=3, save_every=64, loggers=())
    page = (out / "diagnosis.txt").read_text()
    assert "step 3, process 0 of 1" in page and "weights: finite" in page
    assert re.search(r"first module with finite input and an output that is not: late \(Late\), in its value", page)
    times = [float(t) for t in re.findall(r"t=([\d.]+)\)", page)]
    assert times and min(times) > 0.8
    assert all(bool(v.isfinite().all()) for p in out.glob("checkpoints/*/w*") for v in load_file(p).values())


def test_the_page_names_the_rows_of_the_data(tmp_path):
    def row_7(x, indices, read):
        x[indices == 7] = torch.nan

    with pytest.raises(FloatingPointError, match="mend the data"):
        fit(tmp_path / "run", Data(row_7, points(16)), skip_limit=2)
    page = (tmp_path / "run" / "diagnosis.txt").read_text()
    assert "data: not finite in rows 7 of the data set" in page


def test_a_streak_ends_with_a_finite_step():
    streak = Streak(torch.device("cpu"))
    seen = []
    for step, bad in enumerate([1, 1, 0, 1, 1, 1]):
        streak.add(step, torch.tensor(bool(bad)))
        seen.append(streak.known())
    assert seen == [1, 2, 0, 1, 2, 3] and int(streak.last) == 5


# Data, clocks, signals


def test_a_file_that_vanishes_is_named_the_state_is_saved_and_the_run_goes_on(tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(64):
        Image.effect_noise((8, 8), 80 + i).save(folder / f"{i}.png")

    def train(out, data):
        model = mf.MeanFlow(mf.nets.MLP((1, 8, 8), width=8, depth=1))
        options = {"images": 192, "batch": 16, "save_every": 10**6, "grid_every": 10**6, "loggers": ()}
        torch.manual_seed(0)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.1)
        return mf.fit(model, data, out=tmp_path / out, **options)

    train("whole", mf.data.open_data(folder))

    class Vanishing:
        def __init__(self):
            self.inner, self.read = mf.data.open_data(folder), 0

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __len__(self):
            return len(self.inner)

        def batch(self, indices):
            self.read += 1
            if self.read == 8:
                (folder / "11.png").rename(tmp_path / "11.png")
            return self.inner.batch(indices)

    with pytest.raises(ValueError, match=r"11\.png"):
        train("run", Vanishing())
    saved = int(checkpoints(tmp_path / "run" / "checkpoints")[-1].name)
    assert 48 <= saved < 192 and f"the state after {saved} images is saved" in capsys.readouterr().err
    (tmp_path / "11.png").rename(folder / "11.png")
    train("run", mf.data.open_data(folder))
    assert equal(tensors(tmp_path / "whole", 192), tensors(tmp_path / "run", 192))


def test_a_clock_that_goes_backwards_disturbs_nothing(tmp_path, monkeypatch):
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    assert fit(tmp_path / "run").images == 160
    records = read_metrics(tmp_path / "run")
    assert all(r["images_per_second"] > 0 and r["seconds_left"] >= 0 for r in records)


SLOW = """
import sys, time, torch, meanflow as mf
sys.path.insert(0, {tests!r})
from test_faults import Data, net, points


def hang(x, indices, read):
    if read == 3:
        time.sleep({before})
        print("hanging", flush=True)
        time.sleep(60)


mf.fit(mf.MeanFlow(net()), Data(hang), out={out!r}, images=1600, batch=16, save_every=16, deadline=1, loggers=())
"""


@pytest.mark.parametrize(
    ("before", "words"),
    [(0, "within 1 s after SIGTERM"), (5, "no step ended, so nothing new was saved within 1 s after SIGTERM")],
)
def test_sigterm_ends_a_hanging_run_within_its_deadline(before, words, tmp_path):
    """Reading hangs while a step is at work, or while the run waits for it."""
    script = SLOW.format(tests=str(Path(__file__).parent), out=str(tmp_path / "run"), before=before)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "hanging\n"
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    _, errors = process.communicate(timeout=50)
    assert process.returncode == 143 and words in errors
    assert time.monotonic() - begun < 20
    assert fit(tmp_path / "run", images=160).images == 160


def test_sigterm_saves_and_gives_exit_code_143(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--net.width", "16", "--net.depth", "1", "--net.heads", "2", "--net.patch", "4", "--batch", "16"]
    words += ["--images", "160000", "--save-every", "1000000", "--log-every", "160", "--out", "run"]

    def terminate():
        while not read_metrics(tmp_path / "run"):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=terminate)
    sender.start()
    assert main(["train", "digits", *words]) == 143
    sender.join()
    saved = checkpoints(tmp_path / "run" / "checkpoints")
    assert len(saved) == 1 and int(saved[0].name) >= 160
    assert f"stopped by SIGTERM after {int(saved[0].name):,} images; saved" in capsys.readouterr().out


def test_a_folder_is_trained_in_by_one_process_at_a_time(tmp_path):
    fit(tmp_path / "run", images=16)
    with locked(tmp_path / "run"), pytest.raises(ValueError, match="another process is training"):
        fit(tmp_path / "run")
    assert fit(tmp_path / "run").images == 160


# Disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB, and how to make it read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def big():
    torch.manual_seed(0)
    return mf.MeanFlow(mf.nets.MLP((2,), width=64, depth=1))


def test_a_full_disk_is_said_and_the_run_goes_on_from_the_checkpoint_before(small_disk, tmp_path):
    options = {"batch": 16, "save_every": 16, "keep": 1, "log_every": 160, "loggers": ()}
    mf.fit(big(), points(), out=tmp_path / "whole", images=64, **options)
    out = small_disk / "run"
    mf.fit(big(), points(), out=out, images=16, **options)
    (small_disk / "other.bin").write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
    with pytest.raises(CheckpointError, match=r"No space left(.|\n)*free some space"):
        mf.fit(big(), points(), out=out, images=64, **options)
    assert [p.name for p in checkpoints(out / "checkpoints")] == ["000000000016"]
    assert not list((out / "checkpoints").glob(".*"))
    (small_disk / "other.bin").unlink()
    mf.fit(big(), points(), out=out, images=64, **options)
    assert equal(tensors(tmp_path / "whole", 64), tensors(out, 64))


def test_metrics_on_a_full_disk_end_the_run_with_the_folder_named(small_disk):
    out = small_disk / "run"

    def fill(x, indices, read):
        if read == 3:
            with open(small_disk / "other.bin", "wb", buffering=0) as file, pytest.raises(OSError):
                while True:
                    file.write(bytes(4096))

    with pytest.raises((OSError, CheckpointError), match=r"No space left"):
        fit(out, Data(fill), save_every=10**6)
    (small_disk / "other.bin").unlink()
    assert fit(out).images == 160 and len(read_metrics(out)) == 10


def test_a_read_only_folder_is_said_before_and_while_training(small_disk):
    out = small_disk / "run"
    fit(out, images=32)

    def close(x, indices, read):
        if read == 1:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(out / "checkpoints")], check=True)

    with pytest.raises(CheckpointError, match="Read-only file system"):
        fit(out, Data(close))
    subprocess.run(["umount", str(out / "checkpoints")], check=True)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match=r"cannot write to the run folder(.|\n)*choose another"):
        fit(out)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert fit(out).images == 160


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("damage") / "run"
    fit(out, images=64, keep=2)
    return out


@pytest.mark.parametrize("file", ["weights.safetensors", "training.safetensors", "ema-0.999.safetensors", "state.json"])
@pytest.mark.parametrize("place", [0.02, 0.5, 0.98])
def test_a_flipped_byte_in_any_file_is_found_and_the_checkpoint_before_is_taken(file, place, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    path = checkpoints(out / "checkpoints")[-1] / file
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=rf"(?s){re.escape(file)}.*Taking the checkpoint before it"):
        assert fit(out, images=64, keep=2).images == 64
    assert equal(tensors(out, 64), tensors(finished, 64))


# Checkpoints kept, and processes killed


def test_the_last_ones_and_the_milestones_are_kept(tmp_path):
    out = tmp_path / "run"
    fit(out, keep=2, milestone_every=48)
    kept = [int(p.name) for p in checkpoints(out / "checkpoints")]
    assert kept == [48, 96, 144, 160]
    marks = [json.loads((p / "state.json").read_text())["milestone"] for p in checkpoints(out / "checkpoints")]
    assert marks == [True, True, True, False]


def test_damaged_ones_ahead_do_not_crowd_out_whole_ones(tmp_path):
    out = tmp_path / "run"
    fit(out, images=96, keep=5)
    for path in checkpoints(out / "checkpoints")[-3:]:
        (path / "weights.safetensors").write_bytes(b"")

    def stop(x, indices, read):
        if read == 2:
            raise OSError("the disk of the data is gone")

    with pytest.warns(UserWarning), pytest.raises(OSError, match="is gone"):
        fit(out, Data(stop), images=96, keep=1, save_every=10**6)
    assert [int(p.name) for p in checkpoints(out / "checkpoints")] == [80]


def harness(*words):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "kill_and_resume.py", *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_killed_at_random_moments_and_in_saves_every_continuation_is_bit_equal():
    found = harness("--kills", "2", "--images", "640")
    assert found["kills"] == found["bit_equal"] == 2 and found["lost_checkpoints"] == 0


@contextlib.contextmanager
def two_processes(folder):
    """A run of two processes that has saved once: torchrun's process, and those of the ranks by number."""
    words = ["--net.width", "32", "--net.depth", "1", "--net.heads", "4", "--net.patch", "4", "--batch", "64"]
    words += ["--images", "640000", "--save-every", "640", "--out", str(folder / "run")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with open(folder / "log", "w") as log:
        run = subprocess.Popen([*command, "-m", "meanflow.cli", "train", "digits", *words], stdout=log, stderr=log)
        while not list(folder.glob("run/checkpoints/0*")):
            assert run.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
        if not children.exists():
            run.terminate()
            pytest.skip("this system does not list the children of a process")
        pids = [int(pid) for pid in children.read_text().split()]
        yield run, {dict(_environment(pid)).get("RANK"): pid for pid in pids}


def test_when_one_process_dies_the_other_stops_with_a_message(tmp_path):
    with two_processes(tmp_path) as (run, ranks):
        os.kill(ranks["1"], signal.SIGKILL)
        assert run.wait(timeout=60) == 1
    assert "another process of this run is gone or silent" in (tmp_path / "log").read_text()
    assert mf.load(tmp_path / "run")


@pytest.mark.parametrize("told", ["all", "1"])
def test_sigterm_to_all_or_one_of_two_processes_saves_the_step_that_both_have_done(told, tmp_path):
    """Pre-emption tells torchrun, which tells its processes; a signal that only one gets stops both all the same."""
    with two_processes(tmp_path) as (run, ranks):
        os.kill(run.pid if told == "all" else ranks[told], signal.SIGTERM)
        assert run.wait(timeout=60) != 0
    text = (tmp_path / "log").read_text()
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    newest = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert "stopped by SIGTERM" in text and "is gone or silent" not in text, text
    assert 0 < int(newest.name) < 640000 and int(newest.name) % 64 == 0
    assert all(step["images"] <= int(newest.name) for step in steps)
    assert mf.load(tmp_path / "run")


def _environment(pid):
    text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return [entry.split("=", 1) for entry in text.split("\0") if "=" in entry]


# What goes wrong beside the training


def test_a_grid_that_cannot_be_drawn_costs_no_step(tmp_path, capsys):
    """The state is saved, said to be, and the run goes on from there once the reason is mended."""
    out = tmp_path / "run"
    fit(tmp_path / "whole", save_every=10**6)
    fit(out, images=16, save_every=10**6, grid_every=10**6)
    shutil.rmtree(out / "grids", ignore_errors=True)
    (out / "grids").write_text("in the way")
    with pytest.raises(OSError, match="grids"):
        fit(out, save_every=10**6, grid_every=80)
    assert checkpoints(out / "checkpoints")[-1].name == "000000000080"
    assert "the state after 80 images is saved" in capsys.readouterr().err
    (out / "grids").unlink()
    fit(out, save_every=10**6)
    assert equal(tensors(out, 160), tensors(tmp_path / "whole", 160))


def test_a_state_that_could_not_be_saved_is_not_said_to_be(tmp_path, capsys):
    out = tmp_path / "run"

    def vanish(x, indices, read):
        if read == 3:
            (out / "checkpoints").write_text("in the way")
            raise ValueError("11.png: cannot be read")

    with pytest.raises(ValueError, match=r"11\.png"):
        fit(out, Data(vanish), save_every=10**6)
    assert "is saved" not in capsys.readouterr().err


def test_a_terminal_that_is_gone_does_not_stop_the_training(tmp_path, monkeypatch):
    class Gone:
        def write(self, text):
            raise OSError(5, "Input/output error")

        flush = isatty = lambda self: False

    monkeypatch.setattr(sys, "stderr", Gone())
    assert fit(tmp_path / "run").images == 160


def test_a_signal_while_the_last_state_is_being_saved_does_not_cut_it_short():
    with StopSignal(0.05) as stop:
        stop.saving()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)  # the deadline would have ended this process long ago
        assert stop.received == signal.SIGTERM


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal(1):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_folders_of_other_names_are_no_checkpoints(tmp_path):
    """A copy that the user made is neither gone on from nor deleted, whatever its name sorts like."""
    out = tmp_path / "run"
    fit(out, images=64, keep=1)
    shutil.copytree(out / "checkpoints" / "000000000064", out / "checkpoints" / "best")
    (out / "checkpoints" / "best" / "weights.safetensors").write_bytes(b"")
    fit(out, keep=1)
    assert [p.name for p in checkpoints(out / "checkpoints")] == ["000000000160"]
    assert (out / "checkpoints" / "best").is_dir()
    mf.load(out)


def test_the_second_of_two_processes_writes_nothing(tmp_path):
    out = tmp_path / "run"
    fit(out, images=16)
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir() if p.name != ".lock"}
    with locked(out), pytest.raises(ValueError, match="another process is training"):
        fit(out)
    assert before == {p.name: p.stat().st_mtime_ns for p in out.iterdir() if p.name != ".lock"}


def resigned(folder, file, change):
    """Change the tensors of a file and its checksum, as another version might have written them."""
    held = load_file(folder / file)
    change(held)
    save_file(held, folder / file)
    state = json.loads((folder / "state.json").read_text())
    state["sha256"][file] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    del state["checksum"]
    (folder / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize("file", ["weights.safetensors", "training.safetensors", "ema-0.999.safetensors"])
def test_a_whole_checkpoint_of_other_contents_is_said_not_to_fit(file, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    newest = checkpoints(out / "checkpoints")[-1]
    resigned(newest, file, lambda held: held.update({min(held): held[min(held)].new_zeros(3, 5)}))
    with pytest.raises(CheckpointError, match="does not fit this run"):
        fit(out)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("net", "type"), 3),
        (("net", "arguments", "width"), 10**12),
        (("net", "arguments", "depth"), None),
        (("net", "arguments"), []),
        (("objective",), None),
        (("data",), []),
        (("training", "ema"), []),
        (("training", "ema"), ["x"]),
        (("training",), 3),
    ],
)
def test_a_damaged_config_is_named(place, value, finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    config = json.loads((out / "config.json").read_text())
    *above, last = place
    inner = config
    for key in above:
        inner = inner[key]
    inner[last] = value
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json"):
        mf.load(out)
