import numpy as np
import pytest
import torch

from meanflow.data import DataError, arrays


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8)


def as_bytes(x):
    return ((x + 1) * 127.5).round().to(torch.uint8).numpy()


def save(path, array):
    np.save(path, array)
    return path


def test_npy_is_read_channels_last_and_stays_on_disk(tmp_path, pixels):
    path = save(tmp_path / "a.npy", pixels)
    data = arrays(path)
    assert data.shape == (3, 6, 7) and isinstance(data._rows, np.memmap)
    assert np.array_equal(as_bytes(data.batch([4, 0])[0]), pixels[[4, 0]].transpose(0, 3, 1, 2))
    assert data.description()["source"] == str(path)


@pytest.mark.parametrize(
    "shape, wanted",
    [
        ((4, 6, 7), (1, 6, 7)),
        ((4, 6, 7, 1), (1, 6, 7)),
        ((4, 6, 7, 3), (3, 6, 7)),
        ((4, 3, 6, 7), (3, 6, 7)),
        ((4, 1, 6, 7), (1, 6, 7)),
        ((4, 3, 6, 3), (3, 6, 3)),
        ((4, 1, 6, 3), (1, 6, 3)),
    ],
)
def test_layouts_of_bytes(tmp_path, shape, wanted):
    assert arrays(save(tmp_path / "a.npy", np.zeros(shape, np.uint8))).shape == wanted


@pytest.mark.parametrize(
    "shape, image, wanted",
    [
        ((4, 6, 7, 3), None, (3, 6, 7)),
        ((4, 6, 7, 3), False, (6, 7, 3)),
        ((4, 6, 7), None, (6, 7)),
        ((4, 6, 7), True, (1, 6, 7)),
        ((4, 8, 6, 7), None, (8, 6, 7)),
        ((4, 5), None, (5,)),
    ],
)
def test_layouts_of_floats(tmp_path, shape, image, wanted):
    assert arrays(save(tmp_path / "a.npy", np.zeros(shape)), image=image).shape == wanted


def test_floats_of_any_byte_order_are_read_from_disk(tmp_path):
    x = np.random.default_rng(0).normal(size=(9, 4)).astype(">f8")
    drawn = arrays(save(tmp_path / "a.npy", x)).batch([8, 2])[0]
    assert drawn.dtype == torch.float32 and np.array_equal(drawn.numpy(), x[[8, 2]].astype(np.float32))


@pytest.mark.parametrize("x_key", ["images", "x", "data", "arr_0"])
@pytest.mark.parametrize("cond_key", ["labels", "y", "label", "cond", "arr_1", None])
def test_npz_keys(tmp_path, pixels, x_key, cond_key):
    labels = {cond_key: np.arange(5)} if cond_key else {}
    np.savez_compressed(tmp_path / "a.npz", **{x_key: pixels}, **labels)
    data = arrays(tmp_path / "a.npz")
    assert data.classes == (5 if cond_key else None)
    assert np.array_equal(as_bytes(data.batch([3])[0]), pixels[[3]].transpose(0, 3, 1, 2))


def test_the_same_data_have_one_fingerprint_however_stored(tmp_path, pixels):
    np.savez(tmp_path / "a.npz", images=pixels)
    mapped = arrays(save(tmp_path / "a.npy", pixels))
    assert arrays(tmp_path / "a.npz").description()["fingerprint"] == mapped.description()["fingerprint"]


@pytest.mark.parametrize(
    "keys", [["train_x", "train_y"], ["x", "images"], ["x", "labels", "y"], ["x", "targets"], ["y"]]
)
def test_other_keys_are_listed(tmp_path, pixels, keys):
    np.savez(tmp_path / "a.npz", **dict.fromkeys(keys, pixels))
    with pytest.raises(DataError, match=f"a.npz: found the keys {', '.join(keys)}; wanted one of images, x"):
        arrays(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
@pytest.mark.parametrize("keep", [0, 40, 300])
def test_a_corrupt_file_is_named(tmp_path, pixels, name, keep):
    path = tmp_path / name
    if name == "a.npz":
        np.savez(path, x=pixels)
    else:
        np.save(path, pixels)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=f"{name}: cannot be read as plain numpy arrays .*numpy.save"):
        arrays(path)


def test_a_damaged_archive_member_is_found(tmp_path, pixels):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=pixels)
    content = bytearray(path.read_bytes())
    content[100:160] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.npz: cannot be read"):
        arrays(path)


def test_pickles_are_never_loaded(tmp_path):
    path = save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match=r"a.npy: cannot be read .*no object arrays"):
        arrays(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no.npy: there is no such file"):
        arrays(tmp_path / "no.npy")


def test_nan_on_disk_is_found_and_the_file_named(tmp_path):
    x = np.zeros((100, 3), np.float32)
    x[71, 1] = np.nan
    with pytest.raises(DataError, match=r"a.npy: 1 of 300 values .* row 71"):
        arrays(save(tmp_path / "a.npy", x))


def test_a_huge_file_is_looked_at_in_rows_only(tmp_path):
    # sparse: 4 GiB of zeros that take no room on disk
    path = tmp_path / "a.npy"
    mapped = np.lib.format.open_memmap(path, "w+", np.float32, (4096, 512, 512))
    mapped[-1, 3, 3] = np.nan
    mapped.flush()
    with pytest.raises(DataError, match=r"1 of \d+ values of x .* first in row 4095"):
        arrays(path)
