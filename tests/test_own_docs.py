"""docs/own-code.md as it stands: its Python, and its commands in their order; and the two examples beside it."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from meanflow.cli import main
from meanflow.own import named

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "own-code.md"


@pytest.fixture
def home(tmp_path, monkeypatch):
    rows = [f"{i / 20 - 1},{i % 3 - 1},{('dark', 'red', 'fair')[i % 3]},{20 + i}.5" for i in range(40)]
    (tmp_path / "people.csv").write_text("\n".join(["x,y,hair,age", *rows]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_and_command_of_the_page_runs(home, capsys):
    text = PAGE.read_text(encoding="utf-8")
    pieces = re.findall(r"^```python\n(.*?)^```$|^ {4}meanflow ([^\n]+)$", text, re.MULTILINE | re.DOTALL)
    assert len([1 for code, _ in pieces if code]) >= 5 and len([1 for _, words in pieces if words]) >= 8
    (home / "my_file.py").write_text(pieces[0][0])
    for code, words in pieces[1:]:
        if code:
            exec(compile(code, "a block of own-code.md", "exec"), {})
        else:
            assert main(shlex.split(words)) == 0, (words, capsys.readouterr().err)
    assert "torch.Size([4, 3]) torch.Size([32, 2])" in capsys.readouterr().out
    assert {"mine", "people", "signals", "pairs"} <= {p.name for p in (home / "runs").iterdir()}


def test_links_of_the_page_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / target).exists(), target


def test_tones_are_judged_by_what_they_are():
    """Data are all tones under a swell; noise is neither, and ends as loud as it goes on."""
    tones = named(f"{ROOT / 'examples' / 'tones.py'}:judge")
    made = named(f"{ROOT / 'examples' / 'tones.py'}:signals").value
    signals, kinds = made(60, seed=1)
    data = tones.value(signals, kinds)
    assert data["explained"] > 1 - 1e-6 and data["right"] == 1 and data["ends"] < 0.02
    noise = tones.value([torch.randn_like(x) for x in signals], kinds)
    assert noise["explained"] < 0.5 and noise["ends"] > 0.5
    assert {x.shape[1] for x in signals} <= set(range(24, 65))


def test_halves_show_the_upper_one_and_nothing_of_the_lower():
    module = named(f"{ROOT / 'examples' / 'restore.py'}:Halves")
    data = module.value(__import__("meanflow").data.Tensors(torch.randn(5, 1, 8, 8).clamp(-1, 1)))
    x, cond = data.batch([0, 3])
    seen = cond["observation"]
    assert seen.shape == (2, 2, 8, 8) and torch.equal(seen[:, :1, :4], x[:, :, :4])
    assert not seen[:, :, 4:].any() and bool((seen[:, 1, :4] == 1).all())


def test_the_example_of_tones_runs_and_runs_again(home, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tones.py", "--out", "run", "--images", "128"])
    run = named(f"{ROOT / 'examples' / 'tones.py'}:main").value
    run()
    said = capsys.readouterr().out
    assert "data: 100.0% of the energy is tones" in said and "one call: " in said
    assert (home / "run" / "tones.png").read_bytes().startswith(b"\x89PNG")
    run()
    assert capsys.readouterr().out == said


def test_the_example_of_restoration_runs_on_files_like_those_of_fashion_mnist(home, capsys, monkeypatch):
    shared = ROOT.parent / "shared" / "data" / "fashion-mnist"
    if not shared.is_dir():
        pytest.skip("Fashion-MNIST is not beside this checkout (../shared/data/fashion-mnist)")
    module = named(f"{ROOT / 'examples' / 'restore.py'}:main")
    for name, value in (("SEEDS", 2), ("TESTED", 20)):
        monkeypatch.setitem(module.value.__globals__, name, value)
    monkeypatch.setattr("sys.argv", ["restore.py", str(shared), "--out", "run", "--images", "64"])
    module.value()
    said = capsys.readouterr().out
    lines = re.findall(r"^(.+): error of the missing half ([\d.]+)$", said, re.M)
    found = {name: float(value) for name, value in lines}
    assert found["mean image"] < found["grey"] and found["nearest of 10,000"] < found["blank"]
    assert (home / "run" / "restore.png").exists()
