import made
import numpy as np
import pytest

from meanflow.data import DataError, open_data


def grey_bytes(x):
    return ((x + 1) * 127.5).round().byte().numpy()[:, 0]


def refused(path, message, **options):
    with pytest.raises(DataError, match=message):
        open_data(path, **options)


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_folder_of_four_files_has_two_splits(tmp_path, packed):
    grey = made.mnist(tmp_path, packed)
    train = open_data(tmp_path)
    assert train.shape == (1, 6, 4) and train.classes == 3 and len(train) == 8
    assert np.array_equal(grey_bytes(train.batch(range(8))[0]), grey[:8])
    assert train.batch([4])[1].tolist() == [1]
    held_out = open_data(tmp_path, split="held_out")
    assert np.array_equal(grey_bytes(held_out.batch(range(3))[0]), grey[8:])
    assert len(open_data(tmp_path, split="all")) == 11
    assert open_data(tmp_path, cond="none").batch([0])[1] is None


def test_packed_and_plain_are_one_data_set_and_plain_stays_on_disk(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    made.mnist(tmp_path / "a", "")
    made.mnist(tmp_path / "b", ".gz")
    plain, packed = open_data(tmp_path / "a"), open_data(tmp_path / "b")
    assert plain.description()["fingerprint"] == packed.description()["fingerprint"]
    assert isinstance(plain._rows, np.memmap) and not isinstance(packed._rows, np.memmap)


def test_one_file_takes_its_labels_from_beside(tmp_path):
    made.mnist(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    assert open_data(path).batch([2])[1].tolist() == [2]
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    assert open_data(path).classes is None
    refused(path, "has no split 'held_out'", split="held_out")


@pytest.mark.parametrize("keep", [0, 3, 7, 15, 40])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_cut_off_file_is_named(tmp_path, keep, packed):
    path = made.write_idx(tmp_path / f"a-images-idx3-ubyte{packed}", np.zeros((4, 6, 4), np.uint8))
    path.write_bytes(path.read_bytes()[: min(keep, 30 if packed else keep)])
    refused(path, r"a-images-idx3-ubyte.*(cut off|cannot be read|begins with the bytes)")


def test_a_header_that_declares_terabytes_is_refused_without_reserving_them(tmp_path):
    path = made.write_idx(tmp_path / "a-images-idx3-ubyte.gz", np.zeros((4, 6, 4), np.uint8))
    import gzip
    import struct

    path.write_bytes(gzip.compress(struct.pack(">HBB3i", 0, 8, 3, 2**31 - 1, 1000, 1000)))
    refused(path, r"cut off: its header declares 2,147,483,647,000,000 bytes")


def test_another_kind_of_file_is_said(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(b"\x89PNG and so on")
    refused(path, r"begins with the bytes 89504e47, an idx file with 0000")


def test_labels_of_other_data_are_refused(tmp_path):
    made.mnist(tmp_path)
    made.write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(7, np.uint8))
    refused(tmp_path, r"train-labels.*: holds labels of shape \[7\], but train-images-idx3-ubyte.gz holds 8 images")


def test_bytes_after_the_data_are_refused(tmp_path):
    import gzip

    path = made.write_idx(tmp_path / "a-images-idx3-ubyte.gz", np.zeros((4, 6, 4), np.uint8))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"x"))
    refused(path, "goes on after its data")


@pytest.mark.skipif(not (made.SHARED / "fashion-mnist").is_dir(), reason="no Fashion-MNIST beside the repository")
def test_fashion_mnist():
    folder = made.SHARED / "fashion-mnist"
    data, held_out = open_data(folder), open_data(folder, split="held_out")
    assert (len(data), len(held_out), data.shape, data.classes) == (60_000, 10_000, (1, 28, 28), 10)
    x, labels = data.batch(range(60_000))
    assert labels.bincount().tolist() == [6000] * 10
    # mean and deviation that are widely given for these images
    assert abs(float(x.mean()) / 2 + 0.5 - 0.2860) < 1e-3 and abs(float(x.std()) / 2 - 0.3530) < 1e-3
