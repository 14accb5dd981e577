import numpy as np
import pytest
import torch
from PIL import Image

from meanflow.data import DataError, ImageFolder, Tensors, open_data


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "digits").mkdir()
    Image.new("RGB", (6, 4), "red").save(tmp_path / "digits" / "a.png")
    return tmp_path / "digits"


def test_names_folders_and_files(folder, tmp_path, monkeypatch):
    assert open_data("digits").description()["source"] == "digits:train"
    assert len(open_data("digits", split="held_out")) == 359
    assert isinstance(open_data(folder), ImageFolder)
    assert open_data(str(folder), size=3, mode="L").shape == (1, 3, 3)
    np.save(tmp_path / "a.npy", np.zeros((2, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 5)))
    assert open_data(tmp_path / "a.npy").shape == (3, 8, 8)
    assert open_data(str(tmp_path / "a.npz")).shape == (5,)


def test_a_name_wins_over_a_folder_unless_written_as_a_path(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_data("digits").shape == (1, 8, 8)
    assert open_data("./digits").shape == (3, 4, 6)


def test_tensors_pairs_and_data_sets():
    x, labels = torch.zeros(4, 2), torch.arange(4)
    assert open_data(x).shape == (2,)
    assert open_data(x.numpy()).shape == (2,)
    assert open_data((x, labels)).classes == 4
    data = Tensors(x)
    assert open_data(data) is data


def test_skip_broken_reaches_the_folder(folder):
    (folder / "b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"b\.png"):
        open_data(folder)
    with pytest.warns(UserWarning, match=r"1 of 2 .*b\.png"):
        assert len(open_data(folder, skip_broken=True)) == 1


@pytest.mark.parametrize(
    "source, message",
    [
        ("digit", r"digit: .*\(known: digits\).*no file at .*digit; did you mean digits"),
        ("Digits", "did you mean digits"),
        ("no/such/folder", "no folder and no file at .*no/such/folder; check the path"),
        ("nothing.npy", "nothing.npy: there is no such file"),
        (7, "cannot read data from int; pass a name, a path"),
        ([2, 2], "cannot read data from list"),
    ],
)
def test_an_unknown_source_is_refused(source, message):
    with pytest.raises(DataError, match=message):
        open_data(source)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "a.rar").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"a.rar: is none of the known kinds .*unpack"):
        open_data(tmp_path / "a.rar")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 16}, r"digits:train: size=16 is for encoded images, these samples are \[1, 8, 8\]"),
        ({"mode": "RGB"}, "mode='RGB' is for encoded images"),
        ({"split": "test"}, "no split 'test'; choose one of"),
    ],
)
def test_options_that_would_be_ignored_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        open_data("digits", **options)


def test_options_that_hold_already_are_fine():
    assert open_data("digits", size=8, mode="L").shape == (1, 8, 8)


def test_a_folder_has_no_held_out_part(folder):
    with pytest.raises(DataError, match=r"digits: has no split 'held_out'; pass the folder"):
        open_data(folder, split="held_out")
    assert len(open_data(folder, split="all")) == 1
