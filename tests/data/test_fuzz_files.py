"""Whatever bytes a file holds: it is read, or a DataError says why not."""

import pickle
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

import made
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from damage import changed
from meanflow.data import DataError, open_data


def seeds(folder):
    """One small whole file of every format, by its name."""
    made.write_zip(folder / "a.zip", made.class_folders())
    made.write_zip(folder / "stored.zip", made.class_folders() | {"photos/metadata.csv": b"file_name,b\nx,1\n"}, 0)
    made.write_tar(folder / "a.tar", made.webdataset(range(3), cls=made.cls, json=lambda n: b'{"age": 1.5}'))
    made.write_idx(folder / "a-images-idx3-ubyte", np.zeros((3, 4, 4), np.uint8))
    made.write_idx(folder / "a-images-idx3-ubyte.gz", np.zeros((3, 4, 4), np.uint8))
    np.savez(folder / "a.npz", images=np.zeros((3, 1, 4, 4), np.uint8), labels=np.arange(3))
    np.savez_compressed(folder / "packed.npz", images=np.zeros((3, 1, 4, 4), np.uint8), labels=np.arange(3))
    np.save(folder / "a.npy", np.zeros((3, 4)))
    (folder / "a.csv").write_text("x,y2,label\n1,2,a\n3,4,b\n")
    (folder / "data_batch_1").write_bytes(made.cifar_batch(1))
    (folder / "fresh").write_bytes(pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [0]}, 5))
    if find_spec("pyarrow"):
        made.write_parquet(folder / "a.parquet")
        (made.write_saved(folder / "saved") / "data-00000-of-00001.arrow").rename(folder / "a.arrow")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


with tempfile.TemporaryDirectory() as made_here:
    SEEDS = seeds(Path(made_here))

change = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("flip"), st.floats(0, 1), st.integers(1, 255)),
    st.tuples(st.just("write"), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("drop"), st.floats(0, 1), st.integers(1, 64)),
    st.tuples(st.just("twice"), st.floats(0, 1), st.integers(1, 600)),
)


def read(folder, name, content):
    """What opening the file and reading all of it comes to: "read" or "refused"."""
    source = folder / name
    if name in ("data_batch_1", "fresh"):
        source = folder / "data_batch_1"
        (folder / "batches.meta").write_bytes(pickle.dumps({}))
    source.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data = open_data(folder if name in ("data_batch_1", "fresh") else source)
            for first in range(0, len(data), 64):
                data.batch(range(first, min(first + 64, len(data))))
        except DataError as error:
            assert str(error)
            return "refused"
    return "read"


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_a_changed_file_is_read_or_refused(name):
    seen = set()

    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(change, min_size=1, max_size=3))
    def holds(changes):
        with tempfile.TemporaryDirectory() as folder:
            seen.add(read(Path(folder), name, changed(SEEDS[name], changes)))

    holds()
    assert "refused" in seen  # the changes do harm


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_the_whole_file_is_read(tmp_path, name):
    wanted = "refused" if name == "stored.zip" else "read"  # its table names none of the images
    assert read(tmp_path, name, SEEDS[name]) == wanted


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(st.sampled_from(sorted(SEEDS)), st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(name, content):
    with tempfile.TemporaryDirectory() as folder:
        read(Path(folder), name, content)
