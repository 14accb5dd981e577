"""meanflow diagnose, meanflow ema and sample --times auto, on one tiny run of the digits."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

import meanflow as mf
from meanflow.cli import main
from meanflow.cli.ema import lengths
from test_cli import TINY, complaint


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a run of 10 steps and 10 snapshots in `run`, and one without snapshots in `plain`."""
    folder = tmp_path_factory.mktemp("home")
    for name, options in (("run", ["--ema-power", "0.05", "0.1", "--snapshot-every", "64"]), ("plain", [])):
        assert main(["train", "digits", *TINY, "--out", str(folder / name), "--loggers", "csv", *options]) == 0
    return folder


def said(capsys, monkeypatch, folder, *words):
    monkeypatch.chdir(folder)
    capsys.readouterr()
    assert main([str(w) for w in words]) == 0
    return capsys.readouterr().out


def test_diagnose_prints_a_table_and_writes_numbers_and_a_heat_map(home, capsys, monkeypatch):
    text = said(capsys, monkeypatch, home, "diagnose", "run", "--samples", 8, "--many", 8, "--grid", 4)
    assert "network calls of 8 rows each" in text and "identity residual" in text
    numbers = json.loads((home / "run" / "one-call.json").read_text())
    assert [d["calls"] for d in numbers["distances"]] == [1, 2, 4] and numbers["samples"] == 8
    assert f"{numbers['distances'][0]['mean']:.4f}" in text and f"{numbers['residual'][4][0]:.2%}" in text
    assert Image.open(home / "run" / "one-call.png").width > 300
    words = (
        "diagnose",
        "run",
        "--samples",
        8,
        "--many",
        8,
        "--grid",
        4,
        "--ema",
        "power:0.07",
        "--json",
        "--out",
        "x/n",
    )
    other = json.loads(said(capsys, monkeypatch, home, *words))
    assert other["ema"] == "power:0.07" and other["distances"] != numbers["distances"]
    assert json.loads((home / "x" / "n.json").read_text()) == other and (home / "x" / "n.png").exists()


def test_times_are_searched_once_for_weights_and_number_of_calls(home, capsys, monkeypatch):
    words = ("sample", "run", "--seeds", "0-3", "--times")
    text = said(capsys, monkeypatch, home, *words, "auto", "--out", "a.npz")
    assert "at most 385 network calls of 128 rows" in text and "2 network calls each" in text
    (entry,) = json.loads((home / "run" / "times.json").read_text())
    again = said(capsys, monkeypatch, home, *words, "auto", "--out", "b.npz")
    assert "searching" not in again and "distance to 64 calls" in again
    assert np.array_equal(np.load(home / "a.npz")["x"], np.load(home / "b.npz")["x"])
    by_hand = ",".join(map(str, entry["schedule"]["times"]))
    said(capsys, monkeypatch, home, *words, by_hand, "--out", "c.npz")
    assert np.array_equal(np.load(home / "a.npz")["x"], np.load(home / "c.npz")["x"])
    # Other weights have times of their own, and a damaged file is no obstacle.
    assert "searching" in said(capsys, monkeypatch, home, *words, "auto", "--raw", "--out", "d.npz")
    assert len(json.loads((home / "run" / "times.json").read_text())) == 2
    (home / "run" / "times.json").write_text("{")
    assert "searching" in said(capsys, monkeypatch, home, *words, "auto", "--out", "e.npz")


def test_one_rebuilt_average_as_a_file(home, capsys, monkeypatch):
    text = said(capsys, monkeypatch, home, "ema", "run", "--sigma", "0.075", "--out", "x/mean.safetensors")
    assert "relative length 0.075 after 640 images, rebuilt from 20 kept ones" in text
    with safe_open(home / "x" / "mean.safetensors", framework="pt") as file:
        assert file.metadata()["images"] == "640" and file.metadata()["sigma_rel"] == "0.075"
        weight = file.get_tensor("net.final.weight")
    assert (mf.load(home / "run", ema="power:0.075").final.weight == weight).all()


def test_a_sweep_judges_every_length_and_names_the_best(home, capsys, monkeypatch):
    text = said(capsys, monkeypatch, home, "ema", "run", "--sweep", "0.05:0.2:3", "--samples", "100")
    found = json.loads((home / "run" / "ema-sweep.json").read_text())
    assert [round(row["sigma"], 6) for row in found["rows"]] == [0.05, 0.1, 0.2]
    best = min(found["rows"], key=lambda row: row["frechet"])
    assert found["best"] == best and f"best: power:{best['sigma']:.6g}" in text and found["samples"] == 100
    assert len({row["frechet"] for row in found["rows"]}) == 3 and found["protocol"]["name"] == "digits"


def test_a_sweep_is_of_equal_ratios():
    assert lengths("0.02:0.08:3") == pytest.approx([0.02, 0.04, 0.08])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ema", "run"], "either --sigma 0.075"),
        (["ema", "run", "--sigma", "0.1", "--sweep", "0.02:0.1:3"], "either --sigma 0.075"),
        (["ema", "run", "--sigma", "0.1"], "--out NAME.safetensors"),
        (["ema", "run", "--sigma", "0.1", "--at", "100", "--out", "x.safetensors"], "after 128, 64, 192"),
        (["ema", "run", "--sweep", "0.1:0.05:3"], "shorter to a longer"),
        (["ema", "run", "--sweep", "0.1"], "shortest:longest:how many"),
        (["ema", "run", "--sweep", "0.1:0.5:3"], "between 0 and 0.2887"),
        (["ema", "run", "--sweep", "0.05:0.1:3", "--metric", "recall"], "least frechet or kid"),
        (["ema", "plain", "--sweep", "0.05:0.1:3"], "has no snapshots"),
        (["ema", "nowhere", "--sigma", "0.1", "--out", "x.safetensors"], "holds no run"),
        (["sample", "run", "--times", "automatic"], "or auto:4"),
        (["sample", "run", "--times", "auto:1"], "one call has none"),
        (["diagnose", "run", "--many", "10"], "multiple of grid"),
        (["diagnose", "nowhere"], "holds no run"),
    ],
)
def test_wrong_use_is_explained(words, message, home, capsys, monkeypatch):
    assert message in complaint(capsys, monkeypatch, home, *words)
