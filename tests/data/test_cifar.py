import io
import os
import pickle
import tarfile

import made
import numpy as np
import pytest

from meanflow.data import DataError, open_data
from meanflow.data.plain_pickle import load_plain


@pytest.fixture
def folder(tmp_path):
    return made.cifar10(tmp_path / "cifar-10-batches-py")


def check(data, numbers):
    wanted = np.stack([made.pixels(n, 32, 32) for n in numbers])
    assert np.array_equal(made.as_bytes(data.batch(range(len(numbers)))[0]), wanted)


def refused(path, message, **options):
    with pytest.raises(DataError, match=message):
        open_data(path, **options)


def test_the_folder_of_cifar10(folder):
    data = open_data(folder)
    assert data.shape == (3, 32, 32) and data.class_names == ("cat", "dog", "frog") and len(data) == 8
    check(data, range(8))
    assert data.batch(range(8))[1].tolist() == made.LABELS
    check(open_data(folder, split="held_out"), [100, 101])
    assert len(open_data(folder, split="all")) == 10


def test_the_archive_is_the_folder(folder, tmp_path):
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-py")
    packed, plain = open_data(tmp_path / "cifar-10-python.tar.gz"), open_data(folder)
    assert packed.description()["fingerprint"] == plain.description()["fingerprint"]
    assert packed.class_names == plain.class_names


def test_cifar100_has_two_kinds_of_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "train").write_bytes(made.cifar_batch(3, fine_labels=[5, 1, 0], coarse_labels=[1, 0, 0]))
    (folder / "test").write_bytes(made.cifar_batch(1, fine_labels=[5], coarse_labels=[1]))
    names = {b"fine_label_names": [b"%d" % n for n in range(6)], b"coarse_label_names": [b"low", b"high"]}
    (folder / "meta").write_bytes(pickle.dumps(names, 2))
    assert open_data(folder).batch(range(3))[1].tolist() == [5, 1, 0]
    coarse = open_data(folder, cond="coarse_label")
    assert coarse.batch(range(3))[1].tolist() == [1, 0, 0] and coarse.class_names == ("low", "high")
    both = open_data(folder, cond="fine_label,coarse_label", split="held_out").batch([0])[1]
    assert {key: value.tolist() for key, value in both.items()} == {"fine_label": [5], "coarse_label": [1]}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", "<i8", ">f4"])
def test_arrays_of_every_protocol_are_what_pickle_reads(protocol, order, dtype):
    array = np.asarray(np.arange(24).reshape(4, 6), dtype, order=order)
    content = pickle.dumps({b"a": array, "n": [1, 2.5, None, "text"]}, protocol)
    found = load_plain(content, "x")
    assert found[b"a"].dtype == array.dtype and np.array_equal(found[b"a"], array)
    # texts come as bytes where the pickle is in the way of Python 2
    assert found.get("n", found.get(b"n"))[:3] == [1, 2.5, None]


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_pickle_is_run(folder, tmp_path):
    content = pickle.dumps({b"data": Command(tmp_path / "ran"), b"labels": [0]})
    (folder / "data_batch_1").write_bytes(content)
    refused(folder, r"data_batch_1: wants to load posix.mkdir, which could run code, so it is not read any further")
    assert not (tmp_path / "ran").exists()
    # the same bytes do run where pickle itself reads them
    pickle.loads(content)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["builtins eval", "numpy fromfile", "numpy.core.multiarray scalar", "torch load"])
def test_only_what_arrays_need_is_known(name):
    module, function = name.split()
    content = f"c{module}\n{function}\n(S'x'\ntR.".encode()
    with pytest.raises(DataError, match=f"wants to load {module}.{function}, which could run code"):
        load_plain(content, "x")


@pytest.mark.parametrize(
    "array, message",
    [
        (np.array([{}, 1], object), "array of dtype '|O'|array of Python objects"),
        (np.zeros(2, "M8[s]"), "array of dtype"),
        (np.array(["a", "b"]), "array of dtype"),
    ],
)
def test_arrays_of_other_things_are_refused(array, message):
    with pytest.raises(DataError, match=message):
        load_plain(pickle.dumps(array, 2), "x")


def test_a_number_that_asks_for_gigabytes_is_harmless():
    # r: LONG_BINPUT into slot 2^32 - 1, for which the reader written in C reserves 64 GiB
    content = b"\x80\x02]r\xff\xff\xff\xff."
    assert load_plain(content, "x") == []
    huge = pickle.dumps(np.zeros(4, np.uint8), 2).replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85")
    with pytest.raises(DataError, match=r"declares an array of shape \[2147483647\], but 4 bytes"):
        load_plain(huge, "x")


@pytest.mark.parametrize("keep", [0, 1, 30, 3000])
def test_a_cut_off_batch_is_named(folder, keep):
    path = folder / "data_batch_2"
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, r"data_batch_2: cannot be read as a pickle of plain arrays")


def test_labels_that_do_not_fit_are_refused(folder):
    (folder / "data_batch_1").write_bytes(made.cifar_batch(4, labels=[0, 1]))
    refused(folder, r"data_batch_1: has 4 images, but no integer label for each")
    (folder / "data_batch_1").write_bytes(pickle.dumps({b"data": np.zeros((4, 3), np.uint8)}))
    refused(folder, r"data_batch_1: its entry 'data' is uint8 \[4, 3\], wanted uint8 \[N, 3072\]")
    (folder / "data_batch_1").write_bytes(pickle.dumps([1, 2]))
    refused(folder, r"its entry 'data' is NoneType")


@pytest.mark.parametrize("keep", [0, 20, 2000])
def test_a_cut_off_archive_is_named(folder, tmp_path, keep):
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-py")
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, r"cifar-10-python.tar.gz(: cannot be read as an archive|.*: cannot be read as a pickle)")


def test_another_compressed_archive_is_said(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("x.txt"), io.BytesIO())
    refused(tmp_path / "a.tar.gz", "without the files of CIFAR; .*uncompress it to a .tar")
