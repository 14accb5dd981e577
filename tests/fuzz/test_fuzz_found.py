"""What the fuzz found, one case each, so that it stays mended whatever is drawn."""

import json
import os

import numpy as np
import pytest
import torch
from fuzzed import faults, run

import meanflow as mf
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
    empty = build(recipe("imagenet-xl2"), open_data("digits"), empty=True)
    assert all(p.is_meta for p in empty.parameters())
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
    assert outcome.code == 2 and "out.npy: digits:train has conditions" in outcome.err and ".npz" in outcome.err
    (here / "loop").symlink_to("loop")
    assert "exists already" in run(["prepare", "digits", "loop"]).err
    assert run(["prepare", "digits", ""]).code == 2 and os.listdir() == ["loop"]


def test_a_pipe_among_the_images_is_no_image(here):
    (here / "d").mkdir()
    os.mkfifo(here / "d" / "link.png")
    outcome = run(["prepare", "d", "new"])
    assert outcome.code == 2 and "link.png" in outcome.err and not faults(outcome)


def test_images_one_pixel_high_fit_into_a_folder_but_not_into_an_array_alone():
    data = mf.data.Tensors(torch.zeros(3, 1, 1, 8, dtype=torch.uint8), image=True)  # like [N, H, W, C] of latents
    with pytest.raises(ValueError, match="would not be known again"):
        prepare(data, "new.npy")
    assert not os.listdir()
    assert open_data(prepare(data, "new")).shape == (1, 1, 8)


def test_a_checkpoint_whose_step_is_no_number_cannot_be_converted(here):
    assert run(["train", "digits", "--net.width=8", "--net.depth=1", "--net.heads=1", "--images=8", "--batch=8",
                "--out=run"]).code == 0  # fmt: skip
    file = next((here / "run" / "checkpoints").glob("*/state.json"))
    state = json.loads(file.read_text())
    state.pop("checksum", None)
    file.write_text(json.dumps({**state, "step": {}}))
    outcome = run(["convert", "to-authors-jax", "run", "new"])
    assert outcome.code == 1 and "its step is {}" in outcome.err and not faults(outcome)
