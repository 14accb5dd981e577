from collections import Counter
from itertools import count, islice

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, TensorDataset

import meanflow as mf
from meanflow.data import DataError, Samples, Stream, batches, open_data


def numbered(length):
    return [(torch.tensor([float(n), 0.0]), n) for n in range(length)]


class Numbered(IterableDataset):
    def __init__(self, length):
        self.length = length

    def __iter__(self):
        return iter(numbered(self.length))


def drawn(data, number, batch=4, **options):
    stream = batches(data, batch, seed=1, **options)
    found = torch.cat([next(stream)[1] for _ in range(number)])
    stream.close()
    return found.tolist()


def test_what_can_be_iterated_is_a_stream():
    for source in (Numbered(10), lambda: iter(numbered(10)), iter(numbered(10)), (pair for pair in numbered(10))):
        data = open_data(source)
        assert isinstance(data, Stream) and data.shape == (2,) and data.description()["length"] is None
        assert sorted(drawn(data, 2, batch=5)) == list(range(10))


def test_samples_are_mixed_within_the_buffer_and_every_epoch_has_each_once():
    seen = drawn(Stream(Numbered(10), buffer=5), 10)
    for epoch in range(4):
        part = seen[10 * epoch : 10 * epoch + 10]
        assert sorted(part[:5]) == list(range(5)) and sorted(part[5:]) == list(range(5, 10))
    assert seen[:10] != seen[10:20] and seen[:10] != list(range(10))


@pytest.mark.parametrize("start", [0, 3, 8, 10, 11, 27])
def test_a_resumed_stream_goes_on_where_the_first_stopped(start):
    whole = drawn(Stream(Numbered(10), buffer=4), 20, batch=2)
    assert drawn(Stream(Numbered(10), buffer=4), 3, batch=2, start=start) == whole[start : start + 6]


def test_the_buffer_and_the_seed_count():
    assert drawn(Stream(Numbered(50), buffer=50), 5) != drawn(Stream(Numbered(50), buffer=5), 5)
    other = batches(Stream(Numbered(50), buffer=50), 20, seed=2)
    assert next(other)[1].tolist() != drawn(Stream(Numbered(50), buffer=50), 5)


def test_a_stream_without_end_is_read_as_far_as_needed():
    read = Counter()

    def endless():
        for n in count():
            read["samples"] += 1
            yield torch.full((3,), n / 1e6)

    stream = batches(Stream(endless, buffer=8), 4, seed=0)
    assert all(x.shape == (4, 3) for x, _ in islice(stream, 4))
    stream.close()
    assert read["samples"] <= 64 + 4 * 8


def test_a_generator_that_ends_says_what_to_do():
    stream = batches(Stream(iter(numbered(6)), buffer=3), 4, seed=0)
    next(stream)
    with pytest.raises(
        DataError, match="the stream has ended, and an iterator cannot be begun again; pass the function"
    ):
        next(stream)


@pytest.mark.parametrize(
    "samples, message",
    [
        ([], "the stream gave no sample"),
        (["text"], "the first sample is str, wanted x or a pair"),
        ([torch.zeros(2), torch.zeros(3)], r"sample 1 has shape \[3\], the first \[2\]"),
        ([torch.tensor([1.0, np.nan])], "values of x are NaN or Inf"),
        ([torch.zeros(2, dtype=torch.int64)], "x has dtype torch.int64, wanted floats or uint8 images"),
        ([(torch.zeros(2), "cat")], "a condition is str, wanted an integer"),
        ([(torch.zeros(2), {"a": 1}), (torch.zeros(2), {"b": 1})], "differ in structure or shape"),
        ([(torch.zeros(2), torch.zeros(1)), (torch.zeros(2), torch.zeros(2))], "differ in structure or shape"),
    ],
)
def test_samples_that_cannot_be_used_are_named(samples, message):
    with pytest.raises(DataError, match=message):
        Stream(lambda: iter(samples))


def test_a_later_sample_that_cannot_be_used_is_named():
    good = [torch.zeros(2)] * 100
    stream = batches(Stream(lambda: iter([*good, torch.tensor([np.inf, 0])]), buffer=1), 50, seed=0)
    next(stream), next(stream)
    with pytest.raises(DataError, match="sample 100 holds NaN or Inf"):
        next(stream)


def test_images_of_every_kind_become_the_same():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    kinds = [Image.fromarray(pixels), pixels.transpose(2, 0, 1), torch.from_numpy(pixels).permute(2, 0, 1)]
    for kind in kinds:
        data = Samples([kind] * 3)
        x = data.batch([1])[0]
        assert data.shape == (3, 5, 4) and torch.allclose(x[0], torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1)


def test_a_torch_data_set_is_read_by_index():
    x = torch.randn(10, 3)
    data = open_data(TensorDataset(x, torch.arange(10)))
    assert (
        len(data) == 10 and torch.equal(data.batch([7, 2])[0], x[[7, 2]]) and data.batch([7, 2])[1].tolist() == [7, 2]
    )

    class Broken(TorchDataset):
        classes = ("cat", "dog")

        def __len__(self):
            return 100

        def __getitem__(self, index):
            return torch.zeros(3 if index < 90 else 2), {"a": 0.5, "b": index % 2}

    data = open_data(Broken())
    assert data.class_names == ("cat", "dog") and data.classes == 2
    assert {key: value.tolist() for key, value in data.batch([1, 2])[1].items()} == {"a": [[0.5], [0.5]], "b": [1, 0]}
    with pytest.raises(DataError, match=r"Broken: item 95 has shape \[2\], the first \[3\]"):
        data.batch([0, 95])


def test_training_on_a_stream_goes_on_bit_equal(tmp_path):
    def fit(name, images):
        torch.manual_seed(0)
        net = mf.nets.MLP(shape=(2,), width=16, depth=1, classes=10)
        mf.fit(mf.MeanFlow(net), Numbered(10), out=tmp_path / name, images=images, batch=4, device="cpu")
        return mf.load(tmp_path / name, raw=True).state_dict()

    whole = fit("whole", 24)
    fit("parts", 12)
    resumed = fit("parts", 24)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
