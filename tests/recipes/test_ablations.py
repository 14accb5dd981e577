"""The ablations of table 1: the paper's values, what each changes, and a study as a real command."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from meanflow.cli import main
from meanflow.recipes.ablations import TABLES, markdown, open_subject, plan, summary, tables
from meanflow.recipes.ablations.idx import FILES, read_idx_folder
from meanflow.recipes.ablations.study import Finished, finished, perform
from meanflow.recipes.ablations.subjects import Digits
from meanflow.recipes.ablations.table1 import names
from meanflow.recipes.config import Recipe

SHARED = Path(__file__).parents[3] / "shared"
BASE = Digits.base
TIMES, GUIDANCE = ("objective", "times"), ("objective", "guidance")
FULL = (0.0, 1.0)

# Letter, the setting that a table changes, and for each value the paper's FID and what the setting must become;
# arXiv:2505.13447, table 1. The tangent is ours, (dr, dt), where the paper writes (z, r, t).
PAPER = [
    (
        "a",
        (*TIMES, "share_equal"),
        {"0 %": (328.91, 1.0), "25 %": (61.06, 0.75), "50 %": (63.14, 0.5), "100 %": (67.32, 0.0)},
    ),
    (
        "b",
        ("objective", "tangent"),
        {
            "(v,0,1)": (61.06, (0.0, 1.0)),
            "(v,0,0)": (268.06, (0.0, 0.0)),
            "(v,1,0)": (329.22, (1.0, 0.0)),
            "(v,1,1)": (137.96, (1.0, 1.0)),
        },
    ),
    (
        "c",
        ("net", "conditioning"),
        {"t,r": (61.75, "t,r"), "t,t-r": (61.06, "t,t-r"), "t,r,t-r": (63.98, "t,r,t-r"), "t-r": (63.13, "t-r")},
    ),
    (
        "d",
        (*TIMES, "t"),
        {
            "uniform(0,1)": (65.90, "uniform(0,1)"),
            "lognorm(-0.2,1.0)": (63.83, "lognorm(-0.2,1)"),
            "lognorm(-0.2,1.2)": (64.72, "lognorm(-0.2,1.2)"),
            "lognorm(-0.4,1.0)": (61.06, "lognorm(-0.4,1)"),
            "lognorm(-0.4,1.2)": (61.79, "lognorm(-0.4,1.2)"),
        },
    ),
    (
        "e",
        ("objective", "weighting", "p"),
        {
            "p = 0": (79.75, 0.0),
            "p = 0.5": (63.98, 0.5),
            "p = 1": (61.06, 1.0),
            "p = 1.5": (66.57, 1.5),
            "p = 2": (69.19, 2.0),
        },
    ),
    (
        "f",
        (*GUIDANCE, "scale"),
        {
            "w = 1": (61.06, 1.0),
            "w = 1.5": (33.33, 1.5),
            "w = 2": (20.15, 2.0),
            "w = 3": (15.53, 3.0),
            "w = 5": (20.75, 5.0),
        },
    ),
    (
        "f",
        GUIDANCE,
        {
            f"k = {k}": (fid, {"scale": 2.0, "mix": k, "interval": FULL, "drop": 0.1, "drop_rows": "first"})
            for k, fid in ((0, 20.15), (0.5, 19.15), (0.8, 19.10), (0.9, 18.63), (0.95, 19.17))
        },
    ),
]


def taken_out(recipe, path):
    """The setting at a path of a recipe, and everything else."""
    tree = asdict(recipe)
    inner = tree
    for name in path[:-1]:
        inner = inner[name]
    return inner.pop(path[-1]), tree


@pytest.mark.parametrize(
    ("table", "wanted"), list(zip(TABLES, PAPER, strict=True)), ids=lambda x: getattr(x, "title", "")
)
def test_every_value_of_the_paper_changes_its_setting_and_nothing_else(table, wanted):
    letter, path, values = wanted
    assert table.letter == letter
    assert {value.label: value.fid for value in table.values} == {label: fid for label, (fid, _) in values.items()}
    for value in table.values:
        setting, rest = taken_out(value.change(BASE), path)
        assert setting == values[value.label][1]
        assert rest == taken_out(BASE, path)[1]


def test_the_chosen_values_are_the_base_but_for_guidance():
    """A to e hold the base once each, f holds it as w = 1; 26 configurations are distinct."""
    for table in TABLES:
        chosen = next(value for value in table.values if value.label == table.chosen)
        assert (chosen.change(BASE) == BASE) == (table.letter != "f")
        assert len({value.change(BASE) for value in table.values}) == len(table.values)
    assert sum(value.change(BASE) == BASE for table in TABLES for value in table.values) == 6
    assert len(names(BASE)) == len(set(names(BASE).values())) == 26


def test_what_tables_share_is_run_once(tmp_path):
    jobs = plan("digits", BASE, TABLES, [0, 1, 2], 2000, tmp_path)
    assert len(jobs) == len({job.folder for job in jobs}) == 3 * 26
    assert [job.folder.parent.name for job in jobs].count("base") == 3
    assert [job.recipe.training.seed for job in jobs] == [0] * 26 + [1] * 26 + [2] * 26


def test_a_folder_means_the_same_whatever_tables_are_asked_for(tmp_path):
    """k = 0 at w' = 2 is w = 2: its folder is the same whether or not the table of w is there."""
    everything = {job.folder: job.recipe for job in plan("digits", BASE, TABLES, [0], 2000, tmp_path)}
    for table in TABLES:
        for job in plan("digits", BASE, [table], [0], 2000, tmp_path):
            assert everything[job.folder] == job.recipe


def test_tables_come_in_the_order_of_the_paper():
    assert [table.letter for table in tables(["f", " B"])] == ["b", "f", "f"]


def results(distances):
    """Finished runs of table e: {p: distances over seeds}, None for a run that diverged."""
    return [
        Finished(name, seed, distance, None if distance is None else 0.5, None if distance else "diverged: NaN")
        for name, values in distances.items()
        for seed, distance in enumerate(values)
    ]


EXAMPLE = {
    "e-p_0": [3.0, 3.2, 3.4],
    "e-p_0.5": [2.0, 2.1, 2.2],
    "base": [1.0, 1.1, 1.2],
    "e-p_1.5": [1.05, 1.15, 1.25],
    "e-p_2": [0.1, None, 0.2],
}


def test_pairs_are_counted_as_written():
    """Ours rises 2 < 1 < 1.5 < 0.5 < 0 in p, the paper's FID 1 < 0.5 < 1.5 < 2 < 0."""
    table = summary(Digits(), BASE, tables("e"), results(EXAMPLE), 2000)["tables"][0]
    # Not as in the paper: (2, 1), (2, 1.5), (2, 0.5), (1.5, 0.5). Within two standard errors: (1, 1.5) only.
    assert table["pairs"] == {"all": 10, "same": 6, "clear": 9, "clear_same": 5}
    p0, p2 = table["values"][0]["frechet"], table["values"][4]
    assert p0["mean"] == pytest.approx(3.2) and p0["std"] == pytest.approx(0.2)
    assert p2["diverged"] == 1 and p2["frechet"]["values"] == [0.1, 0.2]


def test_one_seed_gives_no_spread_and_no_clear_pair():
    one = {name: values[:1] for name, values in EXAMPLE.items()}
    table = summary(Digits(), BASE, tables("e"), results(one), 2000)["tables"][0]
    assert table["pairs"]["all"] == 10 and table["pairs"]["clear"] is None
    assert all(value["frechet"]["std"] is None for value in table["values"])


def test_the_page_says_what_diverged_and_sets_the_choice_in_bold():
    page = markdown(summary(Digits(), BASE, tables("e"), results(EXAMPLE), 2000))
    assert "| **p = 1** | 1.100 ± 0.100 | 0.500 ± 0.000 | 61.06 |" in page
    assert "| p = 2 | 0.150 ± 0.071 (1 diverged) |" in page
    assert (
        "6 of 10 pairs are ordered as in the paper; of the 9 that differ by more than two standard errors, 5." in page
    )
    assert "not FID" in page and "of 3 seeds" not in page


def test_an_unfinished_study_says_how_many_seeds_it_has():
    part = results({name: values[: 1 + (name == "base")] for name, values in EXAMPLE.items()})
    page = markdown(summary(Digits(), BASE, tables("e"), part, 2000))
    assert "| **p = 1** | 1.050 ± 0.071 | 0.500 ± 0.000 | 61.06 |" in page
    assert "| p = 0 | 3.000 (1 of 2 seeds) | 0.500 | 79.75 |" in page


def short(**training):
    return replace(BASE, training=replace(BASE.training, **training))


def test_a_run_that_diverges_is_a_result(tmp_path):
    """lr 1e9 ends in NaN; the study notes it and goes on, and does not try again."""
    (job,) = plan("digits", short(images=1280, lr=1e9), tables("a")[:1], [0], 200, tmp_path)[:1]
    result = perform(job)
    assert result.frechet is None and result.diverged.startswith("diverged: ")
    assert finished(job) == result


def test_a_result_belongs_to_its_settings(tmp_path):
    job = plan("digits", short(images=128), tables("b"), [0], 200, tmp_path)[0]
    result = perform(job)
    assert finished(job) == result and result.name == "base"
    for other in (
        replace(job, samples=300),
        replace(job, data="other data"),
        replace(job, recipe=replace(job.recipe, training=replace(job.recipe.training, seed=1))),
    ):
        assert finished(other) is None
    # A longer study goes on with the run it finds, a shorter one is refused.
    (longer,) = plan("digits", short(images=256), tables("b")[:1], [0], 200, tmp_path)[:1]
    assert finished(longer) is None and perform(longer) is not None
    assert "has seen 128 of 256 images: going on" in longer.log.read_text()
    with pytest.raises(ValueError, match="already seen 256 images"):
        perform(job)


WORDS = ["ablate", "digits", "--tables", "b", "--seeds", "0", "--images", "2560", "--samples", "200", "--out", "study"]


def started(folder):
    environment = {**os.environ, "COLUMNS": "120", "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": str(folder / "mpl")}
    return subprocess.Popen(
        [sys.executable, "-m", "meanflow.cli", *WORDS, "--jobs", "2"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_study_goes_on_and_a_finished_one_is_only_reported(tmp_path, monkeypatch, capsys):
    study = tmp_path / "study"

    def runs(having):
        return {path.relative_to(study).parts[0]: path for path in study.glob(f"*/seed-0/{having}")}

    killed = started(tmp_path)
    wait_until(lambda: len(runs("checkpoints/0*")) == 2)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    # The workers notice, save and end.
    wait_until(lambda: quiet(study))
    scored, begun = runs("score.json"), runs("checkpoints/0*")
    times = {path: path.stat().st_mtime_ns for path in scored.values()}
    assert len(scored) < len(begun) <= 3

    resumed = started(tmp_path)
    said, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0 and "Traceback" not in errors, errors
    assert "[4/4]" in said and "written: ablations.json and ablations.md, and ablations.png in study" in said
    assert times == {path: path.stat().st_mtime_ns for path in scored.values()}
    for name in begun.keys() - scored.keys():
        assert "going on" in (study / name / "seed-0.log").read_text()
    check_report(study)

    (study / "ablations.png").unlink()
    report, scores = (study / "ablations.json").read_text(), stamps(study)
    monkeypatch.chdir(tmp_path)
    assert main(WORDS) == 0
    again = capsys.readouterr().out
    assert "4 of 4 runs are finished already" in again and "[4/4]" not in again
    assert main([*WORDS, "--report-only"]) == 0
    assert scores == stamps(study) and report == (study / "ablations.json").read_text()
    check_report(study)


def check_report(study):
    found = json.loads((study / "ablations.json").read_text())
    values = found["tables"][0]["values"]
    assert [value["label"] for value in values] == ["(v,0,1)", "(v,0,0)", "(v,1,0)", "(v,1,1)"]
    # Each was trained with its own tangent, so all distances differ.
    assert len({value["frechet"]["mean"] for value in values}) == 4
    assert all(value["frechet"]["mean"] > found["floor"] for value in values)
    assert "| **(v,0,1)** |" in (study / "ablations.md").read_text()
    width, height = Image.open(study / "ablations.png").size
    assert width > 300 and height > 300


def stamps(study):
    return {path: path.stat().st_mtime_ns for path in study.glob("*/seed-0/*.json")}


def wait_until(condition, limit=200):
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def quiet(folder):
    """Whether no file of a folder was written during two seconds."""

    def newest():
        return max(path.stat().st_mtime_ns for path in folder.rglob("*"))

    before = newest()
    time.sleep(2)
    return newest() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digits", "--tables", "a,g"], "tables are a, b, c, d, e, f (table 1 of the paper), got 'g'"),
        (["digits", "--seeds", "one"], "--seeds takes numbers and ranges"),
        (["digits", "--seeds", "0,0"], "the same seed twice is the same run twice"),
        (["digits", "--images", "0"], "images must be at least 1, got 0"),
        (["digits", "--samples", "10"], "samples must be at least 100, got 10"),
        (["digits", "--jobs", "0"], "jobs must be at least 1, got 0"),
        (["digits", "--report-only"], "nothing of this study is finished in runs/ablations-digits"),
        (["no-such-folder"], "there is no folder"),
        (["empty"], "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz"),
        (["digits", "--out", "file"], "file is a file; a study needs a folder"),
    ],
)
def test_wrong_use_is_explained_before_anything_runs(words, message, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert main(["ablate", *words]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def idx(array):
    """An array of bytes in the format of the idx files, before compression."""
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def small_mnist(tmp_path):
    """The four files with a few random images."""
    rng, folder = np.random.default_rng(0), tmp_path / "mnist"
    folder.mkdir()
    for name in FILES:
        n = 40 if name.startswith("train") else 20
        array = rng.integers(0, 256, (n, 28, 28)) if "images" in name else np.arange(n) % 10
        (folder / name).write_bytes(gzip.compress(idx(array.astype(np.uint8))))
    return folder


def test_idx_files_are_read_as_written(small_mnist):
    data = read_idx_folder(small_mnist, "train")
    rng = np.random.default_rng(0)
    first = torch.from_numpy(rng.integers(0, 256, (40, 28, 28))[3].astype(np.float32))
    x, labels = data.batch([3, 12])
    assert torch.equal(x[0, 0], first / 127.5 - 1) and labels.tolist() == [3, 2]
    assert len(data) == 40 and len(read_idx_folder(small_mnist, "t10k")) == 20


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda raw: raw[:-20], "cannot be unpacked"),
        (lambda raw: b"not gzip at all", "cannot be unpacked"),
        (lambda raw: gzip.compress(gzip.decompress(raw)[:-1]), "bytes for the shape (40, 28, 28)"),
        (lambda raw: gzip.compress(idx(np.zeros((4, 4), np.uint8))), "begins with 00000802, wanted 00000803"),
    ],
)
def test_a_spoilt_idx_file_is_named(spoil, message, small_mnist, capsys):
    path = small_mnist / "train-images-idx3-ubyte.gz"
    path.write_bytes(spoil(path.read_bytes()))
    assert main(["ablate", str(small_mnist)]) == 2
    said = capsys.readouterr().err
    assert str(path) in said and message in said


def test_fashion_mnist_is_judged_on_pooled_pixels():
    folder = SHARED / "data" / "fashion-mnist"
    if not folder.is_dir():
        pytest.skip("Fashion-MNIST is not beside this checkout (../shared/data/fashion-mnist)")
    subject = open_subject(str(folder))
    assert len(subject.data) == 60_000 and subject.data.classes == 10 and subject.data.shape == (1, 28, 28)
    x, labels = subject.data.batch(range(10_000, 12_000))
    real = subject.score(x, labels)
    # The training images stand near the test images, and their classes are seen in 49 features.
    assert subject.floor < real.frechet < 0.2 and real.agreement > 0.7
    # Mutants: labels of others, and images without their lower half.
    assert subject.score(x, labels.roll(1)).agreement < 0.2
    blank = torch.cat([x[:, :, :14], torch.full_like(x[:, :, 14:], -1)], 2)
    assert subject.score(blank, labels).frechet > 10 * real.frechet


def test_the_base_is_the_recipe_of_the_digits_but_for_what_is_said():
    """Tokens of 4x4 pixels, a fifth of the images, dropped labels as in the paper, no clipping."""
    from meanflow.recipes import recipe

    known = recipe("digits-unguided")
    net = replace(known.net, patch=BASE.net.patch)
    assert Recipe(net, BASE.objective, BASE.training) == BASE
    assert (BASE.training.batch, BASE.training.lr) == (known.training.batch, known.training.lr)
    assert BASE.objective == replace(known.objective, guidance=replace(known.objective.guidance, drop=0.1))
    assert BASE.training.clip is None and BASE.training.schedule == "constant"
