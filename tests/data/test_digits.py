import numpy as np
import pytest
import torch

from meanflow.data import DataError, digits


def test_they_are_the_digits_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    original = datasets.load_digits()
    x, labels = digits("all").batch(range(1797))
    assert np.array_equal((x[:, 0].numpy() + 1) * 8, original.images)
    assert np.array_equal(labels.numpy(), original.target)


def test_the_whole_range_is_used_exactly():
    x, _ = digits("all").batch(range(1797))
    assert x.unique().tolist() == [value / 8 - 1 for value in range(17)]


def test_shape_and_names():
    data = digits()
    assert data.shape == (1, 8, 8) and data.classes == 10 and data.image
    assert data.class_names == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    assert data.description()["source"] == "digits:train"


def test_the_parts_are_the_whole_and_a_fifth_of_each_class_is_held_out():
    train, held_out, whole = digits("train"), digits("held_out"), digits("all")
    assert (len(train), len(held_out), len(whole)) == (1438, 359, 1797)
    rows = [row.numpy().tobytes() for part in (train, held_out) for row in part.batch(range(len(part)))[0]]
    assert sorted(rows) == sorted(row.numpy().tobytes() for row in whole.batch(range(1797))[0])
    counts = torch.bincount(held_out.batch(range(359))[1]) / torch.bincount(whole.batch(range(1797))[1])
    assert (counts - 0.2).abs().max() < 0.003


def test_the_split_never_changes():
    # published numbers rest on this split: a new fingerprint makes them void
    assert digits("train").description()["fingerprint"].startswith("29308bbfab1156fa")


def test_an_unknown_split_is_refused():
    with pytest.raises(DataError, match="no split 'test'; choose one of train, held_out, all"):
        digits("test")
