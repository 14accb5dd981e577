"""The data of a run are found again as they were read, and its reports stand beside those of a namesake."""

import json

import numpy as np
import pytest
from PIL import Image

import meanflow as mf
from meanflow.cli import main
from meanflow.training.run import read_config
from meanflow.training.subjects import run_data

NET = ["--net.width", "16", "--net.depth", "1", "--net.heads", "2", "--net.patch", "4", "--images", "8", "--batch", "8"]


@pytest.mark.parametrize("asked", [["--skip-broken"], ["--mode", "L"]])
def test_images_that_were_read_with_options_are_the_same_again(asked, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pets"
    folder.mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        image = Image.fromarray(pixels)
        (image.convert("L") if i % 2 and "--mode" in asked else image).save(folder / f"{i:02}.png")
    if "--skip-broken" in asked:
        (folder / "99.png").write_bytes(b"no picture")
    with np.errstate(all="ignore"):
        assert main(["train", "pets", "--size", "8", *asked, *NET, "--out", "run"]) == 0
    data, _, why = run_data(read_config(tmp_path / "run"))
    assert why == "" and len(data) == 12
    capsys.readouterr()


def test_reports_of_runs_with_one_name_stand_beside_each_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for place in ("a", "b"):
        mf.fit(mf.MeanFlow(mf.nets.MLP((2,), width=8, depth=1)), np.eye(8, 2, dtype=np.float32),
               out=tmp_path / place / "digits", images=8, batch=8)  # fmt: skip
    assert main(["evaluate", "a/digits", "b/digits", "--protocol", "none", "--steps", "1", "--out", "rep"]) == 0
    assert sorted(path.name for path in (tmp_path / "rep").iterdir()) == ["a-digits", "b-digits"]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("place", "value", "word"),
    [
        (("conditions",), {"label": 7}, "conditions"),
        (("conditions",), [7], "AttributeError"),
        (("objective", "arguments", "source"), [7], "source"),
        (("objective", "arguments", "source"), {"type": 7}, "source"),
        (("objective", "arguments", "guidance", "drop_rows"), 7, "guidance"),
        (("objective", "arguments", "guidance", "drop_rows"), None, "guidance"),
        (("training", "ema"), [], "training.ema"),
    ],
)
def test_a_record_that_no_run_has_written_is_named(place, value, word, tmp_path):
    net = mf.nets.MLP((2,), width=8, depth=1, classes=2)
    x = np.eye(8, 2, dtype=np.float32), np.arange(8) % 2
    objective = mf.MeanFlow(net, guidance=mf.Guidance(scale=2.0), source=mf.UniformSource())
    mf.fit(objective, x, out=tmp_path / "run", images=8, batch=8)
    assert mf.load(tmp_path / "run").conditions["label"]["classes"] == 2
    file = tmp_path / "run" / "config.json"
    config = json.loads(file.read_text())
    inner = config
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"is damaged: .*{word}"):
        mf.load(tmp_path / "run")
