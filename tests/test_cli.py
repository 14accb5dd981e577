"""The command line: the main job as a real process, and what it says when something is wrong."""

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meanflow.cli import main

NET = ["--net.width", "32", "--net.depth", "1", "--net.heads", "4"]
TINY = [*NET, "--net.patch", "4", "--images", "640", "--batch", "64"]


def process(*words, cwd=None):
    environment = {**os.environ, "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "meanflow.cli", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done


def meanflow(*words, cwd="."):
    """The same within this process, which has torch loaded already."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = main([str(word) for word in words])
    assert code == 0, errors.getvalue()
    return subprocess.CompletedProcess(words, code, out.getvalue(), errors.getvalue())


def complaint(capsys, monkeypatch, folder, *words):
    """Exit code 2 and the text of a command that must be refused, run in this process."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "120")
    try:
        code = main(list(words))
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    text = capsys.readouterr()
    return (text.out + text.err).replace("\n", " ")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a tiny digits run in runs/digits."""
    folder = tmp_path_factory.mktemp("home")
    done = process("train", "digits", *TINY, cwd=folder)
    assert "about 1 by construction" in done.stderr and "effective scale 2" in done.stdout
    assert "mse_v" in done.stderr and "img/s" in done.stderr
    return folder


def test_the_same_command_again_finds_the_run_finished(home):
    done = meanflow("train", "digits", *TINY, cwd=home)
    assert "trained on 640 images" in done.stdout and "640 of 640 images: nothing to do" in done.stderr


def test_a_shorter_run_in_the_folder_is_refused(home, capsys, monkeypatch):
    text = complaint(capsys, monkeypatch, home, "train", "digits", *TINY, "--images", "320")
    assert "already seen 640 images, 320 were asked for" in text


def test_sample_writes_grids_singles_and_arrays(home):
    process("sample", "runs/digits", "--classes", "3,7", "--seeds", "0-9", "--out", "grid.png", cwd=home)
    assert Image.open(home / "grid.png").size == (2 * 60, 5 * 60)
    meanflow("sample", "runs/digits", "--classes", "3,7", "--seeds", "4,5", "--out", "single", cwd=home)
    assert sorted(p.name for p in (home / "single").iterdir()) == ["000004-class3.png", "000005-class7.png"]
    words = ["--classes", "3,7", "--seeds", "0-9", "--batch", "3", "--steps", "2", "--out", "x.npz"]
    meanflow("sample", "runs/digits", *words, cwd=home)
    arrays = np.load(home / "x.npz")
    assert arrays["x"].shape == (10, 1, 8, 8) and arrays["labels"].tolist() == [3, 7] * 5


def test_one_seed_is_one_sample(home):
    for name, seeds, batch in (("a", "0-9", 10), ("b", "6", 1)):
        meanflow("sample", "runs/digits", "--seeds", seeds, "--batch", batch, "--out", f"{name}.npz", cwd=home)
    a, b = np.load(home / "a.npz"), np.load(home / "b.npz")
    assert a["labels"][6] == b["labels"][0] == 6
    assert np.allclose(a["x"][6], b["x"][0], atol=1e-5)


def test_evaluate_prints_a_table_or_one_json_object(home):
    assert "protocol digits" in meanflow("evaluate", "runs/digits", "--samples", "200", cwd=home).stdout
    done = meanflow("evaluate", "runs/digits", "--samples", "200", "--steps", "1,4", "--json", cwd=home)
    rows = json.loads(done.stdout)["rows"]
    assert [r["steps"] for r in rows] == [1, 4]
    assert all({"frechet", "floor", "agreement"} <= r.keys() for r in rows)
    assert json.loads((home / "runs/digits/report/report.json").read_text())["rows"] == rows


def test_flow_matching_baseline_is_a_row_where_one_was_trained(home):
    meanflow("train", "digits", "--recipe", "digits-flow-matching", *TINY, "--out", "runs/flow", cwd=home)
    done = meanflow("evaluate", "runs/digits", "runs/flow", "--samples", "200", "--steps", "1", "--json", cwd=home)
    assert [r["run"] for r in json.loads(done.stdout)["rows"]] == ["runs/digits", "runs/flow"]
    meanflow("sample", "runs/flow", "--steps", "4", "--out", "f.png", cwd=home)
    assert (home / "f.png").is_file()


def test_training_on_a_folder_without_special_settings(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(8):
            array = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(array).save(tmp_path / "pets" / name / f"{i}.png")
    tiny = ["--net.width", "32", "--net.depth", "1", "--net.heads", "4", "--images", "128", "--batch", "64"]
    meanflow("train", "pets", "--size", "16", *tiny, cwd=tmp_path)
    assert list((tmp_path / "runs/pets/grids").glob("*.png"))
    done = meanflow("evaluate", "runs/pets", "--protocol", "none", "--steps", "1", cwd=tmp_path)
    assert "there are no figures" in done.stdout
    report = json.loads((tmp_path / "runs/pets/report/report.json").read_text())
    # Nothing is held out: training images and their nearest other one tell how near is usual.
    assert "nothing is held out" in report["sections"]["neighbours"]["usual"]


def test_cifar_folder_trains(cifar10, tmp_path):
    """Tiles of the real data as an image folder, through the same command."""
    mosaic = np.asarray(Image.open(cifar10 / "train_00.webp"))
    labels = np.load(cifar10 / "train_labels.npy")
    for i in range(64):
        row, column = divmod(i, 40)
        tile = mosaic[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
        folder = tmp_path / "cifar" / str(labels[i])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(folder / f"{i}.png")
    meanflow("train", "cifar", *NET, "--images", "64", "--batch", "32", cwd=tmp_path)
    grid = Image.open(sorted((tmp_path / "runs/cifar/grids").glob("*.png"))[-1])
    assert grid.mode == "RGB"


def test_help_and_recipes_are_readable(capsys):
    assert "one network call" in process("--help").stdout
    for command, word in (
        ("train", "--images"),
        ("sample", "--seeds"),
        ("evaluate", "--json"),
        ("recipes", "show"),
    ):
        with contextlib.suppress(SystemExit):
            main([command, "--help"])
        assert word in capsys.readouterr().out
    assert "digits-unguided" in meanflow("recipes").stdout
    assert "--objective.guidance.scale 2.0" in meanflow("recipes", "show", "digits").stdout


def test_printed_settings_are_options(capsys, tmp_path, monkeypatch):
    """What `recipes show` prints can be given back as it is."""
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "show", "digits"]) == 0
    printed = shlex.split(capsys.readouterr().out.split("\n", 1)[1])
    assert main(["train", "digits", "--dry-run", *printed]) == 0


def test_dry_run_prints_the_cost_and_writes_nothing(tmp_path):
    done = meanflow("train", "digits", "--dry-run", cwd=tmp_path)
    assert "590,500" in done.stdout and "FLOPs per step" in done.stdout and "GiB" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian", "digits"], "did you mean train?"),
        (["train", "digits", "--recipe", "digit"], "did you mean digits?"),
        (["train", "digits", "--net.widht", "3"], "--net.width"),
        (["train", "digits", "--images", "many"], "many"),
        (["sample", "runs/digits", "--out", ""], "given an empty word"),
        (["train", "digots"], "did you mean digits"),
        (["train", "no-such-folder"], "no folder and no file"),
        (["train", "empty"], "empty"),
        (["train", "digits", "--net.patch", "3"], "patch must divide"),
        (["train", "digits", "--net.heads", "7"], "heads must divide the width"),
        (["train", "digits", "--objective.times.t", "lognormal"], "lognorm(mean,std)"),
        (["train", "digits", "--objective.times.share-equal", "75"], "0.75"),
        (["train", "digits", "--out", "taken"], "holds no run"),
        (["sample", "empty"], "holds no run"),
        (["evaluate"], "at least one run folder"),
        (["bench", "sample", "--rounds", "0"], "rounds must be at least 1"),
        (["bench", "step", "--rounds", "0"], "rounds must be at least 1"),
        (["bench", "step", "--device", "tpu9"], "sees no such device"),
        (["sample", "empty", "--device", "tpu9"], "sees no such device"),
        (["doctor", "net.py"], "PATH.py:NAME"),
        (["doctor", "nets.py:build"], "no file nets.py"),
        (["recipes", "show", "nope"], "unknown recipe"),
    ],
)
def test_wrong_use_is_one_clear_line_and_exit_code_2(words, message, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("x")
    assert message in complaint(capsys, monkeypatch, tmp_path, *words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "at least 1, got 0"),
        (["--classes", "12"], "no class 12; there are 0, 1, 2"),
        (["--classes", "three"], "no class 'three'; there are 0, 1, 2"),
        (["--times", "0,1"], "must decrease"),
        (["--guidance", "3"], "guide twice"),
        (["--out", "x.gif"], ".png or .npz"),
        (["--out", "single", "--seeds", "90"], "holds other pictures, such as 000004-class3.png"),
        (["--ema", "0.5"], "EMA decays [0.999]"),
    ],
)
def test_wrong_sampling_is_explained(words, message, home, capsys, monkeypatch):
    assert message in complaint(capsys, monkeypatch, home, "sample", "runs/digits", *words)


def test_another_run_in_the_folder_says_what_differs(home, capsys, monkeypatch):
    text = complaint(capsys, monkeypatch, home, "train", "digits", *TINY, "--lr", "0.5")
    assert "training.lr: 0.002 -> 0.5" in text


def test_import_is_quick_and_light():
    """Loading the library pulls in nothing heavy beyond torch."""
    heavy = ("matplotlib", "tensorboard", "scipy", "sklearn", "tyro", "diffusers")
    code = f"import sys, meanflow; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_imports_go_one_way():
    """core, nets <- objectives <- data, bench <- evaluation, doctor <- training <- recipes, convert <- cli."""
    import ast

    order = {
        "bench": 3,
        "core": 0,
        "nets": 1,
        "convert": 6,
        "objectives": 2,
        "own": 2,
        "data": 3,
        "doctor": 4,
        "evaluation": 4,
        "training": 5,
        "export": 6,
        "page": 7,
        "recipes": 6,
        "serve": 6,
        "hub": 6,
        "cli": 8,
    }
    package = Path(__file__).parents[1] / "src" / "meanflow"
    checked = 0
    for file in package.rglob("*.py"):
        parts = file.relative_to(package).with_suffix("").parts
        if parts[0] not in order:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = [*parts[: len(parts) - node.level], *(node.module or "").split(".")]
                if base[0] in order and base[0] != parts[0]:
                    assert order[base[0]] < order[parts[0]], f"{file} imports {base[0]}"
                    checked += 1
    assert checked > 20
