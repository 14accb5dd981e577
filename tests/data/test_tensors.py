import copy
import json
import pickle
import warnings

import numpy as np
import pytest
import torch

from meanflow.data import DataError, Dataset, Tensors


def images(n=6, channels=3):
    return torch.arange(n * channels * 16).reshape(n, channels, 4, 4).remainder(256).to(torch.uint8)


def test_bytes_become_minus_one_to_one():
    x = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    data = Tensors(x)
    drawn, cond = data.batch([0])
    assert drawn.dtype == torch.float32 and cond is None
    assert torch.allclose(drawn.flatten(), torch.tensor([-1, -0.6, 1]))
    assert data.shape == (3, 1, 1) and data.classes is None and isinstance(data, Dataset)


def test_all_256_bytes_survive_the_way_there_and_back():
    x = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1)
    drawn, _ = Tensors(x).batch(range(256))
    assert torch.equal(((drawn + 1) * 127.5).round().to(torch.uint8), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_are_kept_as_float32(dtype):
    x = torch.linspace(-1, 1, 48, dtype=torch.float64).reshape(1, 3, 4, 4).to(dtype)
    drawn, _ = Tensors(x).batch([0])
    assert drawn.dtype == torch.float32 and torch.equal(drawn, x.float())


def test_numpy_arrays_of_any_layout_and_byte_order_are_read():
    x = np.random.default_rng(0).normal(size=(5, 7)).astype(">f4")
    for array in (x, x[::-1], np.asfortranarray(x)):
        assert np.array_equal(Tensors(array).batch(range(5))[0].numpy(), array)


def test_a_batch_is_a_copy():
    data = Tensors(torch.zeros(4, 2))
    data.batch([0, 1])[0].fill_(9)
    assert torch.equal(data.batch([0, 1])[0], torch.zeros(2, 2))


def test_indices_may_be_a_list_a_range_a_tensor_or_none_at_all():
    data = Tensors(images(), torch.arange(6))
    for indices in ([4, 1], torch.tensor([4, 1]), range(4, -2, -3)):
        assert data.batch(indices)[1].tolist() == [4, 1]
    assert data.batch([])[0].shape == (0, 3, 4, 4)
    with pytest.raises(IndexError):
        data.batch([6])


def test_labels_are_int64_and_count_the_classes():
    data = Tensors(images(), np.array([0, 2, 1, 2, 0, 1], np.uint8))
    assert data.classes == 3
    labels = data.batch([1, 2])[1]
    assert labels.dtype == torch.int64 and labels.tolist() == [2, 1]
    assert Tensors(images(), torch.zeros(6).long(), classes=10).classes == 10
    assert Tensors(images(), torch.zeros(6).long(), class_names=["a", "b"]).classes == 2


def test_conditions_may_be_vectors_or_nested_dicts():
    vectors = torch.randn(6, 5, dtype=torch.float64)
    assert torch.equal(Tensors(images(), vectors).batch([3])[1], vectors[3:4].float())
    text = {"ids": torch.arange(12).reshape(6, 2), "mask": torch.ones(6, 2).bool()}
    tree = {"text": text, "size": torch.ones(6)}
    cond = Tensors(images(), tree).batch([5, 0])[1]
    assert cond["text"]["ids"].tolist() == [[10, 11], [0, 1]] and cond["text"]["mask"].dtype == torch.bool
    assert cond["size"].dtype == torch.float32


def test_copies_and_pickles_work():
    data = Tensors(images(), torch.arange(6))
    for other in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert torch.equal(other.batch([2])[0], data.batch([2])[0])
        assert other.description() == data.description()


BAD_SAMPLES = [
    (torch.tensor([[0.0], [1.0], [float("nan")], [float("inf")]]), {}, "2 of 4 values .* NaN.* row 2;"),
    (torch.full((2, 3), 1e300, dtype=torch.float64), {}, r"6 of 6 .* \(as float32\), first in row 0"),
    (torch.zeros(4, 3, dtype=torch.int64), {}, r"dtype torch.int64, wanted floats .* x.float\(\)"),
    (torch.zeros(4, 1, 2, 2, dtype=torch.int16), {}, r"torch.int16.*x.to\(torch.uint8\)"),
    (np.zeros((4, 3), np.uint16), {}, "torch.uint16"),
    (torch.zeros(4, 3, dtype=torch.bool), {}, "dtype torch.bool"),
    (torch.zeros(4, 3, dtype=torch.complex64), {}, "dtype torch.complex64"),
    (torch.zeros(0, 3), {}, r"shape \[0, 3\] and so holds no values"),
    (torch.zeros(4, 3, 0), {}, r"\[4, 3, 0\]"),
    (torch.zeros(4), {}, r"shape \[4\].*pass x\[:, None\]"),
    (torch.zeros(4, 5, dtype=torch.uint8), {}, r"uint8 x of shape \[4, 5\] .*image=True"),
    (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), {}, r"x.permute\(0, 3, 1, 2\) for channels last"),
    (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), {"image": False}, "uint8 x of shape"),
    (torch.zeros(4, 8, 8), {"image": True}, r"\[N, C, H, W\], got \[4, 8, 8\]; pass x\[:, None\]"),
    (torch.linspace(0, 255, 12).reshape(4, 3, 1, 1), {}, r"this looks like \[0, 255\]: pass x / 127.5 - 1"),
    (torch.linspace(-3, 1, 12).reshape(4, 3, 1, 1), {}, r"got \[-3, 1\]; rescale them, or pass image=False"),
    ([[0.0], [1.0]], {}, "got list; convert it"),
    (np.array([["a"]]), {}, "must hold numbers, got numpy dtype <U1"),
    (np.array([[None]]), {}, "numpy dtype object"),
    pytest.param(
        np.zeros((2, 2), np.longdouble),
        {},
        "numpy dtype float.*, which torch lacks",
        marks=pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="no long double"),
    ),
]


@pytest.mark.parametrize("x, options, message", BAD_SAMPLES)
def test_bad_samples_are_refused(x, options, message):
    with pytest.raises(DataError, match=message) as caught:
        Tensors(x, source="mine", **options)
    assert str(caught.value).startswith("mine: ")


BAD_CONDITIONS = [
    (torch.zeros(5).long(), {}, r"cond has shape \[5\], but there are 6 samples"),
    (torch.tensor([0, 1, -1, 0, -7, 0]), {}, "label -7 in row 4; labels must be 0 or more"),
    (torch.tensor([0, 1, 2, 10, 3, 3]), {"classes": 10}, "label 10 in row 3.* 0 to 9; pass classes=11"),
    (torch.zeros(6), {}, r"must be integers, got torch.float32; pass cond.long\(\)"),
    (torch.zeros(6).bool(), {}, "must be integers, got torch.bool"),
    (torch.zeros(6, 1).long(), {}, r"integer cond of shape \[6, 1\].*cond.squeeze\(1\)"),
    (torch.zeros(6, 2, dtype=torch.complex64), {}, "is complex"),
    (torch.tensor(3), {}, r"shape \[\]"),
    ("labels", {}, "cond must be a torch tensor or a numpy array, got str"),
    ({}, {}, "cond is an empty dict"),
    ({0: torch.zeros(6)}, {}, "key 0; keys must be strings"),
    ({"a": {"b": torch.zeros(7, 2)}}, {}, r"cond\['a'\]\['b'\] has shape \[7, 2\], but there are 6 samples"),
    ({"a": torch.tensor([0, 0, 0, 0, float("nan"), 0])}, {}, r"cond\['a'\]: 1 of 6 values .*first in row 4"),
    (torch.full((6, 2), float("inf")), {}, "12 of 12 values are NaN or Inf, first in row 0"),
    (None, {"classes": 10}, "classes=10 .*need class labels"),
    (torch.zeros(6).long(), {"classes": 3, "class_names": ["a", "b"]}, "2 class_names for 3 classes"),
]


@pytest.mark.parametrize("cond, options, message", BAD_CONDITIONS)
def test_bad_conditions_are_refused(cond, options, message):
    with pytest.raises(DataError, match=message) as caught:
        Tensors(images(), cond, source="mine", **options)
    assert str(caught.value).startswith("mine: ")


def test_zero_to_one_is_warned_about():
    with pytest.warns(UserWarning, match=r"look like \[0, 1\], wanted \[-1, 1\]; use x \* 2 - 1") as caught:
        Tensors(torch.linspace(0, 1, 12).reshape(4, 3, 1, 1))
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "x",
    [
        torch.linspace(-1.0005, 1.0005, 12).reshape(4, 3, 1, 1),
        torch.linspace(0, 0.4, 12).reshape(4, 3, 1, 1),
        torch.linspace(0, 300, 12).reshape(4, 3),
        torch.linspace(0, 1, 64).reshape(4, 4, 2, 2),
    ],
)
def test_good_ranges_are_silent(x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Tensors(x)


def test_latents_with_three_channels_may_have_any_range():
    assert not Tensors(torch.full((2, 3, 4, 4), 7.0), image=False).image


def test_the_description_is_json_and_the_fingerprint_tells_data_apart():
    data = Tensors(images(), torch.arange(6), source="mine")
    described = json.loads(json.dumps(data.description()))
    wanted = {"kind": "tensors", "source": "mine", "length": 6, "shape": [3, 4, 4], "classes": 6}
    assert wanted.items() <= described.items()
    changed = images()
    changed[5, 2, 3, 3] += 1
    others = [
        Tensors(changed, torch.arange(6)),
        Tensors(images(), torch.arange(6).flip(0)),
        Tensors(images()),
        Tensors(images().reshape(6, 3, 2, 8), torch.arange(6)),
        Tensors(images()[:5], torch.arange(5)),
    ]
    prints = {other.description()["fingerprint"] for other in [data, *others]}
    assert len(prints) == 6
    assert described["fingerprint"] == Tensors(images().numpy(), torch.arange(6)).description()["fingerprint"]


def test_large_data_are_fingerprinted_by_rows_with_the_first_and_the_last():
    x = torch.zeros(70, 1, 1024, 1024, dtype=torch.uint8)
    prints = {Tensors(x).description()["fingerprint"]}
    for row in (0, 69):
        x[row, 0, 5, 5] = 1
        prints.add(Tensors(x).description()["fingerprint"])
    assert len(prints) == 3
