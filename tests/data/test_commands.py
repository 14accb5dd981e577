"""The commands on every kind of data, in this process."""

import json

import made
import numpy as np
import pytest

from meanflow.cli import main


def dry(capsys, *words):
    code = main(["train", *map(str, words), "--dry-run", "--net.width", "16", "--net.depth", "1", "--net.heads", "2"])
    text = capsys.readouterr()
    return code, text.out + text.err


def kinds(folder):
    """Every kind of data, by the options that it takes."""
    made.write_zip(folder / "a.zip", made.class_folders())
    made.write_tar(folder / "a.tar", made.webdataset(cls=made.cls))
    (folder / "mnist").mkdir()
    made.mnist(folder / "mnist")
    made.cifar10(folder / "cifar")
    np.savez(folder / "a.npz", images=np.zeros((4, 8, 8, 3), np.uint8), labels=np.arange(4) % 2)
    (folder / "a.csv").write_text("x,y2,label\n1,2,a\n3,4,b\n")
    return ("a.zip", "--cond", "none"), ("a.tar",), ("mnist", "--split", "held_out"), ("cifar",), ("a.npz",), ("a.csv",)


def test_every_kind_of_data_can_be_trained_on(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in kinds(tmp_path):
        code, text = dry(capsys, *words)
        assert code == 0 and "FLOPs per step" in text, text


@pytest.mark.parametrize(
    "words, message",
    [
        (("a.zip", "--cond", "hair"), "no column 'hair' for a condition"),
        (("a.zip", "--split", "held_out"), "a.zip: has no split 'held_out'"),
        (("a.zip", "--split", "test"), "no split 'test'; choose one of train, held_out, all"),
        (("a.zip", "--workers", "-1"), "workers must be 0 or more"),
        (("a.npz", "--cond", "hair"), "no column 'hair'"),
        (("cifar", "--size", "16"), "size=16 is for encoded images"),
        (("digits", "--cond", "none"), "these data come with their conditions"),
        (("a.txt",), "a.txt: is none of the known kinds"),
        (("nothing.zip",), "no folder and no file at"),
        (("nothing-{0..3}.tar",), "nothing-0.tar: there is no such file"),
    ],
)
def test_options_that_do_not_fit_are_one_line(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    kinds(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    code, text = dry(capsys, *words)
    assert code == 2 and message in text and text.count("\n") == 1


def test_a_folder_with_a_table_and_two_splits(tmp_path, capsys):
    from meanflow.data import open_data

    for split, numbers in (("train", range(6)), ("val", range(6, 8))):
        (tmp_path / split / "deep").mkdir(parents=True)
        rows = [json.dumps({"file_name": f"deep/{n}.png", "hair": "red" if n % 2 else "blue", "n": n}) for n in numbers]
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(rows))
        for n in numbers:
            (tmp_path / split / "deep" / f"{n}.png").write_bytes(made.png(n))
    data, held_out = open_data(tmp_path, cond="hair"), open_data(tmp_path, cond="hair,n", split="held_out")
    made.check_all(data, range(6))
    assert data.class_names == ("blue", "red") and data.batch([1])[1].tolist() == [1]
    assert {k: v.tolist() for k, v in held_out.batch([0, 1])[1].items()} == {"hair": [0, 1], "n": [6, 7]}
    # what the table says counts, so another table is another data set
    before = data.description()["fingerprint"]
    path = tmp_path / "train" / "metadata.jsonl"
    path.write_text(path.read_text().replace('"red"', '"grey"', 1))
    assert open_data(tmp_path, cond="hair").description()["fingerprint"] != before
