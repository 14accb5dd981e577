import json
import os
import resource

import made
import numpy as np
import pytest
import torch

from meanflow.cli import main
from meanflow.data import DataError, Stream, Tensors, digits, open_data, prepare


@pytest.fixture
def photos(tmp_path):
    return open_data(made.write_zip(tmp_path / "photos.zip", made.class_folders()))


@pytest.mark.parametrize("workers", [0, 2])
def test_prepared_images_are_the_same_bit_for_bit_and_stay_on_disk(photos, tmp_path, workers):
    data = open_data(prepare(photos, tmp_path / "fast", workers=workers))
    assert isinstance(data._rows, np.memmap) and data._rows.dtype == np.uint8
    (x, labels), (wanted, wanted_labels) = data.batch(range(8)), photos.batch(range(8))
    assert torch.equal(x, wanted) and torch.equal(labels, wanted_labels)
    assert data.class_names == photos.class_names and data.classes == 3 and data.shape == photos.shape


def test_floats_attributes_and_nested_conditions_are_kept(tmp_path):
    torch.manual_seed(0)
    cond = {"a": torch.arange(5), "b/..": {"c": torch.randn(5, 2), "d": torch.randn(5)}}
    source = Tensors(torch.randn(5, 7, 2), cond)
    data = open_data(prepare(source, tmp_path / "fast"))
    assert torch.equal(data.batch(range(5))[0], source.batch(range(5))[0])
    found = data.batch([3])[1]
    assert found["a"].tolist() == [3] and torch.equal(found["b/.."]["c"], cond["b/.."]["c"][[3]])
    assert torch.equal(found["b/.."]["d"], cond["b/.."]["d"][[3]])
    assert open_data(tmp_path / "fast", cond="a").classes == 5
    assert open_data(tmp_path / "fast", cond="none").batch([0])[1] is None
    with pytest.raises(DataError, match="no column 'z' for a condition; there are: a, b"):
        open_data(tmp_path / "fast", cond="z")


def test_float_images_stay_floats(tmp_path):
    source = digits()
    data = open_data(prepare(source, tmp_path / "fast"))
    assert data._rows.dtype == np.float32 and torch.equal(data.batch(range(9))[0], source.batch(range(9))[0])
    assert data.classes == 10


def test_an_existing_folder_and_a_stream_are_refused(photos, tmp_path):
    (tmp_path / "fast").mkdir()
    with pytest.raises(DataError, match="fast exists already; choose another name"):
        prepare(photos, tmp_path / "fast")
    with pytest.raises(DataError, match="a stream has no end"):
        prepare(Stream(lambda: iter([torch.zeros(2)])), tmp_path / "slow")


def test_what_fails_half_way_leaves_nothing(photos, tmp_path):
    (tmp_path / "photos.zip").unlink()
    with pytest.raises(DataError, match="No such file"):
        prepare(photos, tmp_path / "fast")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        assert main(["prepare", "photos.zip", "fast"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["photos.zip"]


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "meanflow-data.json"])
@pytest.mark.parametrize("keep", [None, 0, 100])
def test_a_damaged_folder_is_named(photos, tmp_path, name, keep):
    file = prepare(photos, tmp_path / "fast") / name
    content = file.read_bytes()
    file.unlink()
    if keep is not None:
        file.write_bytes(content[:keep])
    # without its header it is a folder like others, without images
    with pytest.raises(DataError, match=r"fast.*(prepare it again|prepare the data again|holds no images)"):
        open_data(tmp_path / "fast")


def test_another_version_is_said(photos, tmp_path):
    file = prepare(photos, tmp_path / "fast") / "meanflow-data.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 99}))
    with pytest.raises(DataError, match="version 99 of format meanflow-data, wanted 1"):
        open_data(tmp_path / "fast")


def test_a_mapped_file_that_is_cut_off_while_in_use_is_named(photos, tmp_path):
    data = open_data(prepare(photos, tmp_path / "fast"))
    os.truncate(tmp_path / "fast" / "images.npy", 200)
    with pytest.raises(DataError, match=r"images.npy: was cut off while in use: 200 bytes, wanted 704"):
        data.batch([7])


def test_the_command_says_what_it_wrote_and_what_is_next(tmp_path, capsys, monkeypatch):
    made.write_zip(tmp_path / "photos.zip", made.class_folders())
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "photos.zip", "fast", "--size", "4", "--cond", "none"]) == 0
    text = capsys.readouterr().out
    assert "8 samples of shape (3, 4, 4) in fast" in text and "meanflow train fast" in text
    assert main(["prepare", "photos.zip", "fast"]) == 2
    assert "fast exists already" in capsys.readouterr().err
