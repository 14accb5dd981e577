"""Recipes of the paper: the settings of its tables and of the authors' code, and what is published of them."""

import json

import pytest

from meanflow.cli import main
from meanflow.core.guidance import Guidance
from meanflow.core.times import Times
from meanflow.core.weighting import AdaptiveWeight
from meanflow.nets import MLP
from meanflow.recipes import FACTS, RECIPES, build_objective, changes, expected, recipe

# Size, epochs, effective scale w', w, interval; source: arXiv:2505.13447, table 4.
TABLE_4 = {
    "imagenet-b4": ("B/4", 80, 1.0, 1.0, (0.0, 1.0)),
    "imagenet-b2": ("B/2", 240, 2.0, 1.0, (0.0, 1.0)),
    "imagenet-m2": ("M/2", 240, 2.0, 1.0, (0.0, 1.0)),
    "imagenet-l2": ("L/2", 240, 2.5, 0.2, (0.0, 0.8)),
    "imagenet-xl2": ("XL/2", 240, 2.5, 0.2, (0.0, 0.75)),
    "imagenet-xl2+": ("XL/2", 1000, 2.0, 1.0, (0.3, 0.8)),
}
# FID by network calls; source: arXiv:2505.13447, tables 1 to 3, and the README files of the authors' code.
PUBLISHED = {
    ("imagenet-b4", "paper"): "FID 61.06 with 1 call",
    ("imagenet-b4", "code"): "FID 11.40 with 1 call",
    ("imagenet-b2", "paper"): "FID 6.17 with 1 call",
    ("imagenet-m2", "paper"): "FID 5.01 with 1 call",
    ("imagenet-l2", "paper"): "FID 3.84 with 1 call",
    ("imagenet-xl2", "paper"): "FID 3.43 with 1 call, 2.93 with 2 calls",
    ("imagenet-xl2", "code"): "",
    ("imagenet-xl2+", "paper"): "FID 2.20 with 2 calls",
    ("cifar10-v0", "paper"): "FID 2.92 with 1 call",
    ("cifar10-v1", "code"): "FID 2.80 with 1 call",
}


def objective(name, variant):
    """The objective of a recipe, around a network of which it needs nothing but a null."""
    return build_objective(recipe(name, variant).objective, MLP((2,), classes=10))


@pytest.mark.parametrize("name", TABLE_4)
@pytest.mark.parametrize("variant", ["paper", "code"])
def test_imagenet_rows_are_table_4(name, variant):
    size, epochs, scale, w, interval = TABLE_4[name]
    found = recipe(name, variant)
    training, guidance = found.training, found.objective.guidance
    assert found.net.size == size and found.net.conditioning == "t,t-r"
    if (name, variant) != ("imagenet-b4", "code"):
        assert training.images == epochs * 1_281_167
        assert (guidance.scale, guidance.w, guidance.interval) == (scale, pytest.approx(w), interval)
    assert guidance.drop == 0.1
    assert (training.batch, training.lr, training.betas, training.weight_decay) == (256, 1e-4, (0.9, 0.95), 0)
    assert (training.ema, training.schedule, training.warmup, training.clip) == ((0.9999,), "constant", 0, None)
    times = objective(name, variant).times
    assert times == Times.authors_jax() and found.objective.weighting.p == 1


def test_the_paper_and_the_jax_code_differ_where_they_differ():
    paper, code = recipe("imagenet-xl2", "paper"), recipe("imagenet-xl2", "code")
    assert changes(paper, code) == {
        "objective.guidance.drop_rows": "first",
        "objective.weighting.c": 0.01,
        "training.optimizer": "adamw",
        "training.ema_start": "full",
    }
    assert changes(code, paper)["objective.weighting.c"] == 1e-3
    assert set(changes(recipe("imagenet-b4", "paper"), recipe("imagenet-b4", "code"))) == {
        *changes(paper, code),
        "objective.guidance.scale",
        "objective.guidance.mix",
        "training.images",
    }


def test_b4_as_code_is_what_the_recorded_run_of_the_authors_code_was(reference):
    method = json.loads((reference / "guided_kappa" / "case.json").read_text())["method"]
    ours = objective("imagenet-b4", "code")
    assert ours.guidance == Guidance.from_paper(
        method["omega"], method["kappa"], drop=method["class_dropout_prob"], interval=(0.0, 1.0)
    )
    assert ours.weighting == AdaptiveWeight(method["norm_p"], method["norm_eps"])
    assert ours.times.share_equal == method["data_proportion"]
    assert (ours.times.t.mean, ours.times.t.std) == (method["P_mean"], method["P_std"])


def test_cifar_as_code_is_what_the_recorded_run_of_the_authors_code_was(reference):
    method = json.loads((reference / "cifar_unet" / "case.json").read_text())["method"]
    ours, training = objective("cifar10-v1", "code"), recipe("cifar10-v1").training
    assert ours.weighting == AdaptiveWeight(method["norm_p"], method["norm_eps"])
    assert ours.times == Times.cifar_v1() and ours.guidance is None
    assert 1 - ours.times.share_equal == method["ratio"]
    assert (ours.times.t.mean, ours.times.t.std) == (method["P_mean_t"], method["P_std_t"])
    assert training.ema == (method["ema_decay"], *method["ema_decays"]) and training.ema_every == 16


def test_cifar_rows_are_the_papers_and_the_codes():
    paper, code = recipe("cifar10-v0", "paper"), recipe("cifar10-v0", "code")
    assert objective("cifar10-v0", "code").times == Times.cifar_v0()
    training = paper.training
    assert (training.steps, training.warmup // training.batch) == (800_000, 10_000)
    assert (training.batch, training.lr, training.betas, training.ema) == (1024, 6e-4, (0.9, 0.999), (0.99995,))
    assert (code.training.steps, code.training.warmup // 1024) == (16_000 * 48, 200 * 48)
    assert set(changes(code, recipe("cifar10-v1"))) == {
        "objective.times.t",
        "objective.times.r",
        "objective.times.order",
    }


def test_cifar_network_and_augmentation():
    found = recipe("cifar10-v0")
    assert (found.net.kind, found.net.dropout, found.training.augment) == ("unet", 0.2, "edm")
    assert (found.net.width, found.net.depth, found.net.multipliers) == (128, 4, (2, 2, 2))


@pytest.mark.parametrize(("name", "variant"), PUBLISHED)
def test_what_is_published(name, variant):
    assert expected(name, variant, None) == PUBLISHED[name, variant]


def test_every_row_has_facts_and_every_difference_a_reason():
    assert list(FACTS) == [*TABLE_4, "cifar10-v0", "cifar10-v1"]
    for name, facts in FACTS.items():
        assert facts.source and facts.data and facts.notes and facts.variants
        if len(facts.variants) > 1:
            differ = changes(recipe(name, "paper"), recipe(name, "code"))
            # Scale and mix have their reason in common.
            assert set(differ) - set(facts.why) <= {"objective.guidance.mix"}, name


def test_list_has_a_line_for_each(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert "FID 3.43 with 1 call, 2.93 with 2 calls" in next(x for x in lines if x.startswith("imagenet-xl2 "))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "imagenet-b4", "--as", "papre"], "can be had as paper or code, not as 'papre'"),
        (["--recipe", "imagenet-b4", "--ablation", "a:26"], "did you mean a:25"),
        (["--recipe", "imagenet-l4"], "did you mean imagenet-l2?"),
        (["--as", "code"], "digits is no row of the paper"),
    ],
)
def test_wrong_use_of_train_is_explained(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits", *words]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["imagenet-x2"], "did you mean imagenet-xl2?"),
        (["imagenet-b4", "--as", "papre"], "papre"),
        (["digits", "--as", "code"], "no row of the paper"),
        (["cifar10-v1", "--as", "paper"], "can be had as code, not as 'paper'"),
        (["imagenet-b2", "--ablation", "a:50"], "cells of imagenet-b4, not of imagenet-b2"),
        (["imagenet-b4", "--ablation", "a:60"], "power p of the adaptive weight: e:p=0 e:p=0.5 e:p=1"),
    ],
)
def test_wrong_use_is_explained(words, message, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    try:
        code = main(["recipes", "show", *words])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    text = capsys.readouterr()
    assert message in text.out + text.err
