"""The cells of the ablation tables: each one a valid command line, in the paper's and in the code's variant."""

import shlex

import pytest
import torch

from meanflow.cli.train import _parsed
from meanflow.data import Tensors
from meanflow.recipes import build, cell, cells, changed, changes, option, recipe

BASE = ["latents", "--recipe", "imagenet-b4"]
SETTINGS = {
    "a:0": {"objective.times.share_equal": 1.0},
    "b:v,1,0": {"objective.tangent": (1.0, 0.0)},
    "c:t,r,t-r": {"net.conditioning": "t,r,t-r"},
    "d:uniform,0,1": {"objective.times.t": "uniform(0,1)"},
    "e:p=0.5": {"objective.weighting.p": 0.5},
    "f:w=3": {"objective.guidance.scale": 3.0},
    "f:k=0.9": {"objective.guidance.scale": 2.0, "objective.guidance.mix": 0.9},
}


def test_there_is_a_cell_for_each_value_of_the_tables():
    assert len(cells()) == 4 + 4 + 4 + 5 + 5 + 5 + 5
    assert {found.table.letter for found in cells().values()} == set("abcdef")
    # The chosen value of a to e is the recipe itself, and nothing else is.
    unchanged = [name for name, found in cells().items() if not found.changes]
    assert unchanged == ["a:25", "b:v,0,1", "c:t,t-r", "d:lognorm,-0.4,1.0", "e:p=1", "f:w=1"]
    assert [name for name in unchanged if not cells()[name].chosen] == ["f:w=1"]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_cell_changes_what_the_table_says(name):
    assert changes(recipe("imagenet-b4"), recipe("imagenet-b4", None, name)) == SETTINGS[name]


@pytest.mark.parametrize("name", cells())
def test_a_cell_is_a_command_line_and_so_are_its_options(name):
    wanted = recipe("imagenet-b4", None, name)
    assert _parsed([*BASE, "--ablation", name], "imagenet-b4").settings == wanted
    written = [word for key, value in cell(name).changes.items() for word in shlex.split(option(key, value))]
    assert _parsed([*BASE, *written], "imagenet-b4").settings == wanted
    tiny = changed(wanted, {"net.size": None, "net.width": 32, "net.depth": 1, "net.heads": 4})
    loss = build(tiny, Tensors(torch.zeros(2, 4, 8, 8), torch.arange(2)))(torch.randn(4, 4, 8, 8), torch.arange(4) % 2)
    assert loss.loss.isfinite()


@pytest.mark.parametrize("name", ["e:p=0.5", "f:w=3", "a:50"])
def test_as_code_keeps_what_the_code_does_beside_the_cell(name):
    code = recipe("imagenet-b4", "code", name)
    assert code.objective.weighting.c == 0.01 and code.objective.guidance.drop_rows == "first"
    assert code.training.images == 80 * 1_281_167
    assert changes(recipe("imagenet-b4", "paper", name), code).keys() == {
        "objective.guidance.drop_rows",
        "objective.weighting.c",
        "training.optimizer",
        "training.ema_start",
    }
    # The mutant: the table's own change would put the paper's constant back.
    assert cell("e:p=0.5").value.change(recipe("imagenet-b4", "code")).objective.weighting.c == 1e-3


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("a:25 %", "a:25"),
        ("A:50%", "a:50"),
        ("b:(v,0,0)", "b:v,0,0"),
        ("d:lognorm(-0.2,1.2)", "d:lognorm,-0.2,1.2"),
        ("e:p = 2", "e:p=2"),
    ],
)
def test_a_cell_can_be_written_as_the_paper_does(given, meant):
    assert cell(given).name == meant


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a:26", "did you mean a:25"),
        ("g:1", r"share of rows with r != t: a:0 a:25 a:50 a:100"),
        ("", "f:k=0 f:k=0.5 f:k=0.8 f:k=0.9 f:k=0.95"),
    ],
)
def test_a_cell_that_does_not_exist_lists_those_that_do(given, message):
    with pytest.raises(ValueError, match=message):
        cell(given)
