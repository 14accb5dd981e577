"""What the fuzz found, one case each, so that it stays mended whatever is drawn."""

import os

import numpy as np
import pytest
import torch
from fuzzed import faults, run

from meanflow.cli.words import numbers
from meanflow.data import open_data, prepare
from meanflow.recipes import Recipe, build, recipe


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "digits", "--net.width=1000000", "--net.heads=1"], "GiB"),
        (["train", "digits", "--net.width=1000000000", "--net.heads=1"], "no machine has room"),
        (["train", "digits", "--net.width=1" + 20 * "0", "--net.heads=1", "--dry-run"], "no machine has room"),
        (["train", "digits", "--batch=100000000000"], "GiB"),
        (["train", "digits", "--net.depth=1000000000"], "at most 10,000 blocks"),
        (["train", "digits", "--net.depth=1000000000", "--dry-run"], "at most 10,000 blocks"),
    ],
)
def test_numbers_that_would_take_all_memory_are_refused_before(words, message):
    outcome = run(words)
    assert outcome.code == 2 and message in outcome.err and not faults(outcome)
    assert not os.listdir()


def test_a_dry_run_takes_no_memory_and_a_run_that_fits_is_not_refused():
    with torch.device("meta"):
        assert all(p.is_meta for p in build(recipe("imagenet-xl2"), open_data("digits")).parameters())
    assert not next(build(Recipe(), open_data("digits")).parameters()).is_meta


@pytest.mark.parametrize("text", ["²", "1-²", "٣", "0-99999999999", "9" * 30])
def test_lists_of_numbers_are_ascii_and_end(text):
    with pytest.raises(ValueError, match="--seeds"):
        numbers(text, "seeds")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("kind", ["bytes", "floats"])
def test_one_file_holds_what_was_prepared(suffix, kind, here):
    x = torch.randint(0, 256, (300, 3, 4, 4), dtype=torch.uint8) if kind == "bytes" else torch.randn(300, 5)
    data = open_data(x if suffix == ".npy" else (x, torch.arange(300) % 7))
    again = open_data(prepare(data, here / f"out{suffix}"))
    assert again.shape == data.shape and again.classes == data.classes
    for ours, theirs in zip(again.batch(range(300)), data.batch(range(300)), strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)
    assert isinstance(again._rows, np.memmap) and os.listdir() == [f"out{suffix}"]


def test_one_file_refuses_what_it_cannot_hold(here):
    outcome = run(["prepare", "digits", "out.npy"])
    assert outcome.code == 2 and "out.npy: these data have conditions" in outcome.err and ".npz" in outcome.err
    (here / "loop").symlink_to("loop")
    assert "exists already" in run(["prepare", "digits", "loop"]).err
    assert run(["prepare", "digits", ""]).code == 2 and os.listdir() == ["loop"]
