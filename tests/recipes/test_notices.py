"""What is said at the start of a run that began with a recipe."""

from dataclasses import replace

import pytest

from meanflow.cli import main
from meanflow.recipes import batch_notice, expected, notices, recipe
from meanflow.recipes.notices import half_life
from meanflow.training import Training

LATENTS = ((4, 32, 32), 1000)


def with_training(name, **changed):
    found = recipe(name)
    return replace(found, training=replace(found.training, **changed))


def test_a_changed_batch_with_the_learning_rate_left_is_pointed_out():
    text = batch_notice("imagenet-b4", recipe("imagenet-b4").training, with_training("imagenet-b4", batch=64).training)
    assert "has batch 256 with lr 0.0001; the batch is now 64" in text
    # A quarter of the batch: a quarter of the rate, or half of it.
    assert "--lr 2.5e-05 (linear" in text and "--lr 5e-05 (with its square root)" in text
    assert "--ema 0.999975 keeps it" in text


@pytest.mark.parametrize("changed", [{}, {"lr": 2e-4}, {"batch": 64, "lr": 5e-5}, {"images": 10}])
def test_nothing_is_said_where_the_batch_stayed_or_the_rate_went_along(changed):
    now = with_training("imagenet-b4", **changed).training
    assert batch_notice("imagenet-b4", recipe("imagenet-b4").training, now) == ""


def test_a_learning_rate_that_was_asked_for_is_no_oversight():
    now = with_training("digits", batch=64)
    assert notices("digits", None, None, now, (1, 8, 8), 10)
    assert notices("digits", None, None, now, (1, 8, 8), 10, lr_given=True) == []


def test_averages_that_were_changed_as_well_are_left_alone():
    before = Training(batch=256, ema=(0.9999, 0.999))
    assert "--ema 0.999975 0.99975 keeps it" in batch_notice("x", before, replace(before, batch=64))
    assert "--ema" not in batch_notice("x", before, replace(before, batch=64, ema=(0.9,)))
    assert "--ema" not in batch_notice("x", replace(before, ema=(0.0,)), replace(before, batch=64, ema=(0.0,)))


@pytest.mark.parametrize(("decay", "batch"), [(0.9999, 256), (0.99995, 1024), (0.9, 8)])
def test_half_life(decay, batch):
    steps = half_life(decay, batch) / batch
    assert decay**steps == pytest.approx(0.5, rel=0.01)
    # The decay that is suggested for a quarter of the batch.
    assert half_life(decay**0.25, batch / 4) == pytest.approx(half_life(decay, batch), abs=1)


def test_a_recipe_as_it_is_says_what_to_expect():
    (text,) = notices("imagenet-b4", None, None, recipe("imagenet-b4"), *LATENTS)
    assert text.startswith("imagenet-b4 as in the paper: FID 61.06 with 1 call is published, after 102,493,360 images")
    assert "GPU-hours here" in text


def test_a_cell_has_an_expectation_of_its_own():
    assert expected("imagenet-b4", None, "f:w=3") == "FID 15.53 with 1 call"
    assert expected("imagenet-b4", "code", "f:w=2") == "FID 20.24 with 1 call"
    assert expected("imagenet-b4", "code", "f:w=3") == ""


def test_what_was_changed_is_named():
    changed = with_training("imagenet-b4", images=1000, seed=3, device="cpu", save_every=7)
    (text,) = notices("imagenet-b4", None, None, changed, (3, 8, 8), None)
    assert "but changed: --images 1000, samples (3, 8, 8) with no classes instead of (4, 32, 32) with 1000" in text
    assert "FID 61.06 with 1 call is published for the recipe as it is" in text and "--seed" not in text


def test_own_recipes_say_nothing_when_nothing_was_changed():
    assert notices("digits", None, None, recipe("digits"), (1, 8, 8), 10) == []


def test_training_starts_with_the_notices(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = ["--net.size", "None", "--net.width", "32", "--net.depth", "1", "--net.heads", "4"]
    words = ["--recipe", "imagenet-b4", "--as", "code", "--ablation", "a:50", *net]
    assert main(["train", "digits", *words, "--batch", "64", "--images", "64"]) == 0
    said = capsys.readouterr().err
    assert "note: recipe imagenet-b4 has batch 256" in said
    assert "note: imagenet-b4 as in the authors' code, but changed: --net.size None" in said


def test_data_without_labels_serve_where_labels_are_only_dropped(tmp_path, capsys, monkeypatch):
    import numpy as np

    monkeypatch.chdir(tmp_path)
    np.save("grey.npy", np.random.default_rng(0).normal(size=(16, 1, 8, 8)).clip(-1, 1).astype(np.float32))
    net = ["--net.size", "None", "--net.width", "32", "--net.depth", "1", "--net.heads", "4"]
    assert main(["train", "grey.npy", "--recipe", "imagenet-b4", *net, "--batch", "16", "--images", "16"]) == 0
    assert "with no classes instead of" in capsys.readouterr().err
