"""Whatever is typed: a documented exit code, one message, no traceback, no hang, nothing written but what was named.

The number of cases is MEANFLOW_FUZZ_CASES over all files of this folder.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import strategies
from fuzzed import changes, clear, faults, fuzzing, harm, judge, run, tree
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

NETS = """
import torch, meanflow as mf
def build(): return mf.nets.MLP((2,), width=8, depth=1)
def odd(): return torch.nn.Linear(2, 2), torch.randn(4, 2)
number = 3
"""


def picture(path: Path, side=8, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((side, side), 90).convert(mode).save(path)


def make_home(home: Path) -> None:
    """Files and folders of all kinds, whole ones and others."""
    for n in range(4):
        picture(home / "photos" / "ab"[n % 2] / f"{n}.png")
        picture(home / "grey" / f"{n}.png", mode="L")
        picture(home / "mixed" / f"{n}.png", side=6 + n)
        picture(home / "odd names" / ["ü 1.png", "日本.png", "a\nb.png", "\udcff.png"][n])
    picture(home / "loop" / "a.png")
    (home / "loop" / "again").symlink_to(home / "loop")
    (home / "loop" / "self.png").symlink_to(home / "loop" / "self.png")
    (home / "empty").mkdir()
    (home / "deep").mkdir()
    (home / "deep" / "zero.png").symlink_to("/dev/zero")
    (home / "dev").symlink_to("/dev/zero")
    os.mkfifo(home / "fifo")
    x = np.random.default_rng(0).uniform(-1, 1, (12, 1, 8, 8)).astype(np.float32)
    np.save(home / "x.npy", x[:, 0, 0])
    np.save(home / "one.npy", x[:1])
    np.save(home / "nan.npy", np.where(x > 0.9, np.nan, x))
    np.save(home / "objects.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    np.savez(home / "x.npz", images=(x * 100 + 120).astype(np.uint8), labels=np.arange(12) % 3)
    (home / "bad.npz").write_bytes((home / "x.npz").read_bytes()[:300])
    (home / "x.csv").write_text("a,b,label\n" + "".join(f"{n},{n / 3},{n % 2}\n" for n in range(12)))
    (home / "x.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    (home / "a.txt").write_text("no data\n")
    (home / "net.py").write_text(NETS)
    (home / "bad.py").write_text("import nothing_of_this_name\n")
    for name, words in (
        ("run", ["digits"]),
        ("flow", ["digits", "--recipe", "digits-flow-matching"]),
        ("points", ["x.csv", "--recipe", "points"]),
    ):
        more = ["--loggers=csv", "--seed=12345", f"--out={name}", "--net.patch=4"]
        assert run(["train", *words, *strategies.TINY, *more]).code == 0
    clear_named(home, "runs")


def clear_named(home: Path, name: str) -> None:
    assert not (home / name).exists()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder that every case finds as it was made."""
    folder, before = tmp_path_factory.mktemp("home"), os.getcwd()
    os.environ["COLUMNS"] = "200"
    os.chdir(folder)
    make_home(folder)
    strategies.learn()
    yield folder
    os.chdir(before)


def named(words: list[str]) -> list[str]:
    """What a command may write: anything that it was given by name, and its defaults."""
    given = [word.partition("=")[2] if word.startswith("--") else word for word in words[1:]]
    return [os.path.normpath(word) for word in given if word] + ["runs", "samples.png"]


@fuzzing(0.36)
@given(words=strategies.command())
def test_commands(home, words):
    before = tree(home)
    outcome = run(words)
    after = tree(home)
    writes = words[0] not in ("status", "recipes", "doctor", "bench") and "--dry-run" not in words
    found = faults(outcome) + harm(before, after, outcome, named(words), writes)
    touched = [n for n in changes(before, after)[1] if n.startswith(("run/check", "flow/check", "points/check"))]
    found += [f"an existing run was changed: {touched}"] if touched else []
    judge(words, found, outcome)
    clear(home, before)


@fuzzing(0.04)
@given(words=st.lists(strategies.odd, max_size=4))
def test_any_words(home, words):
    """What is no command at all, and what follows one at random."""
    before = tree(home)
    outcome = run(words)
    judge(words, faults(outcome) + harm(before, tree(home), outcome, named(["", *words])), outcome)
    clear(home, before)
