"""docs/reproduce.md: every command in it is one, and every number in it is that of the recipes."""

import re
import shlex
from pathlib import Path

import pytest

from meanflow.cli import main
from meanflow.cli.train import _parsed
from meanflow.recipes import FACTS, cell, cells, cost, expected, gpu_hours, recipe

PAGE = Path(__file__).parents[2] / "docs" / "reproduce.md"
TEXT = PAGE.read_text(encoding="utf-8")
LINES = [line.strip() for line in TEXT.splitlines() if line.startswith("    meanflow ")]
TRAIN = [line for line in LINES if line.startswith("meanflow train ")]
SHOW = [line for line in LINES if line.startswith("meanflow recipes")]
TABLES = [line.strip("|") for line in TEXT.splitlines() if line.startswith("|")]
ROWS = [[part.strip().strip("*") for part in line.split("|")] for line in TABLES]


def named(row):
    """The recipe, cell or command that the first column of a row names, or None."""
    match = re.match(r"`([^`]+)`", row[0])
    return match[1] if match else None


def option(words, name):
    return words[words.index(name) + 1] if name in words else None


def test_the_page_has_a_command_for_every_recipe_and_every_other_cell():
    words = [shlex.split(line) for line in TRAIN]
    assert {option(w, "--recipe") for w in words} == set(FACTS)
    # What the paper goes on with is the recipe itself, once; so is k = 0 the same as w = 2.
    others = {name for name, found in cells().items() if found.changes} - {"f:k=0"}
    assert {option(w, "--ablation") for w in words} - {None} == others
    out = [option(w, "--out") for w in words]
    assert len(set(out)) == len(out) >= 30


@pytest.mark.parametrize("line", TRAIN)
def test_every_train_command_parses(line):
    words = shlex.split(line)[2:]
    name = option(words, "--recipe")
    parsed = _parsed(words, name)
    assert parsed.settings.training.compile == ("--compile" in words)
    wanted = recipe(name, option(words, "--as"), option(words, "--ablation"))
    assert parsed.settings.objective == wanted.objective and parsed.settings.net == wanted.net


@pytest.mark.parametrize("line", SHOW)
def test_every_recipes_command_runs(line, capsys):
    assert main(shlex.split(line)[1:]) == 0
    assert capsys.readouterr().out


def test_a_misspelt_command_would_be_noticed(capsys):
    with pytest.raises(SystemExit):
        _parsed(["latents/", "--recipe", "imagenet-b2", "--outt", "runs/b2"], "imagenet-b2")
    with pytest.raises(ValueError, match="did you mean"):
        _parsed(["latents/", "--ablation", "a:5"], "imagenet-b4")


def test_cells_have_the_papers_fid():
    rows = {named(row): row for row in ROWS if (named(row) or "")[1:2] == ":"}
    assert set(rows) == set(cells())
    for name, row in rows.items():
        assert row[1] == f"{cell(name).fid('paper'):.2f}" and row[2] == ""
        code = cell(name).fid("code")
        assert len(row) == 3 or row[3] == ("" if code is None else f"{code:.2f}")


def test_recipes_have_the_published_fid():
    found = 0
    for row in ROWS:
        name = named(row)
        if name in FACTS and len(row) in (3, 4) and re.match(r"\d+\.\d+|$", row[1]):
            variant = FACTS[name].variants[0]
            fid = FACTS[name].fid[variant]
            values = [re.match(r"\d+\.\d+", text) for text in row[1:-1]]
            for calls, value in enumerate(values, 1):
                assert (float(value[0]) if value else None) == fid.get(calls), row
            assert row[-1] == ""
            found += 1
    assert found == 7 and "FID 11.4" in TEXT and expected("imagenet-b4", "code", None) == "FID 11.40 with 1 call"


@pytest.mark.parametrize("row", [row for row in ROWS if named(row) in FACTS and len(row) > 5], ids=named)
def test_costs_are_those_that_are_counted(row):
    name = named(row)
    found, facts = recipe(name), FACTS[name]
    price = cost(found, facts.shape, facts.classes)
    training = found.training
    images, total, hours, space = row[-4:]
    assert int(images.replace(",", "")) == training.images
    assert float(total) == float(f"{price.flops(training):.2g}")
    assert f"about {hours} GPU-hours" == str(gpu_hours(price, training, facts.authors_step))
    assert int(space) == round(price.memory(training) / 2**30)
    if len(row) == 7:
        assert (row[1], row[2]) == (f"{price.parameters / 1e6:.1f}", f"{price.forward / 2e9:.1f}")


def test_cifar_u_net():
    """55,932,419 parameters with 6 augmentation labels; 75 % of the rows have r < t: 3.75 forward passes."""
    found = recipe("cifar10-v0")
    price = cost(found, (3, 32, 32), None)
    assert price.parameters == 55_932_419 and "55.9 M parameters" in TEXT
    assert round(price.forward / 2e9, 1) == 21.2 and "21.2 G multiply-adds" in TEXT
    assert 1.25 <= price.ratio <= 1.26 and "1.25 times a flow-matching step" in TEXT
    # README of the authors' code: 0.21 s a step on 8 H200, which is 373 GPU-hours; ours is 3.76 / 5 of that.
    estimate = gpu_hours(price, found.training, authors_step=8 * 0.21)
    assert estimate.low == pytest.approx(800_000 * 8 * 0.21 / 3600 * 3 * price.ratio / 5)


def test_show_prints_source_expectation_cost_differences_and_settings(capsys):
    assert main(["recipes", "show", "imagenet-xl2", "--as", "code"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for wanted in (
        "code: as Gsunshine/meanflow (JAX) does",
        "source arXiv:2505.13447, tables 2 and 4",
        "shape (4, 32, 32), 1000 classes",
        "no FID is published",
        "307,480,080 images (240 epochs), 1,201,095 steps of 256",
        "effective scale 2.5 (w = 0.2, k = 0.92) for t in [0, 0.75]",
        "676,440,592 parameters, 118.6 G multiply-adds",
        "GPU-hours, estimated for an H100 at 40% (a guess) to 20%",
        "GiB on one GPU",
        '--objective.weighting.c paper 0.001, code 0.01; the paper says "e.g. 1e-3"',
        "--objective.weighting.c 0.01 --objective.derivative exact",
        "summed over the dimensions before the weight, never averaged",
    ):
        assert wanted in text, wanted


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:\s]+)\)", TEXT):
        assert (PAGE.parent / target).exists(), target
