import copy
import json
import os
import pickle
import struct
import sys
from itertools import accumulate

import made
import pytest
import torch

from meanflow.data import DataError, arrow_images, open_data, order
from meanflow.data.order import Blocks, block_order

pytest.importorskip("pyarrow", reason="pyarrow is not installed")


def refused(path, message, **options):
    with pytest.raises(DataError, match=message):
        open_data(path, **options)


@pytest.fixture(params=["parquet", "saved"])
def source(request, tmp_path):
    if request.param == "parquet":
        return made.write_parquet(tmp_path / "data.parquet")
    return made.write_saved(tmp_path / "data")


def test_images_labels_and_names_are_read(source):
    data = open_data(source)
    made.check_all(data)
    assert data.batch(range(8))[1].tolist() == made.LABELS and data.class_names == ("cat", "dog", "frog")
    assert open_data(source, cond="none").batch([0])[1] is None
    assert open_data(source, size=3, mode="L").shape == (1, 3, 3)


def test_copies_and_pickles_read_on(source):
    data = open_data(source)
    for other in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        made.check_all(other)


def test_splits_are_told_by_names_and_folders(tmp_path):
    made.write_parquet(tmp_path / "train-00000-of-00001.parquet")
    made.write_parquet(tmp_path / "test-00000-of-00001.parquet", made.table_of_images().slice(2, 3))
    made.check_all(open_data(tmp_path))
    made.check_all(open_data(tmp_path, split="held_out"), [2, 3, 4])
    assert len(open_data(tmp_path, split="all")) == 11
    saved = tmp_path / "saved"
    made.write_saved(saved / "train")
    made.write_saved(saved / "validation", made.table_of_images().slice(1, 2))
    (saved / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    made.check_all(open_data(saved))
    made.check_all(open_data(saved, split="held_out"), [1, 2])


def test_columns_become_attributes(tmp_path):
    table = made.table_of_images(at=[[n, 0.5] for n in range(8)], hair=["red", "blue"] * 4)
    path = made.write_parquet(tmp_path / "a.parquet", table)
    cond = open_data(path, cond="at,hair,label").batch([1, 2])[1]
    assert cond["at"].tolist() == [[1, 0.5], [2, 0.5]] and cond["hair"].tolist() == [0, 1]
    assert open_data(path, cond="hair").class_names == ("blue", "red")
    refused(path, "no column 'size' for a condition; there are: label, at, hair", cond="size")


def test_plain_bytes_and_several_files_are_read(tmp_path):
    import pyarrow as pa

    for part in (0, 1):
        rows = range(4 * part, 4 * part + 4)
        made.write_parquet(
            tmp_path / f"{part}.parquet", pa.table({"img": [made.png(n) for n in rows], "n": list(rows)})
        )
    data = open_data(tmp_path)
    made.check_all(data)
    assert data.batch([6])[1].tolist() == [6]
    assert data._title(6).endswith("/1.parquet row 2")


@pytest.mark.parametrize("keep", [0, 8, 500, -4])
def test_a_cut_off_table_is_named(source, keep):
    file = source if source.is_file() else source / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:keep])
    refused(source, rf"{file.name}: cannot be read as a table .*cut off|holds no rows|images are broken")


def test_an_offset_that_leads_out_of_the_file_is_refused(tmp_path):
    """Unseen, it would end the process: the bytes are read where the table says that they are."""
    folder = made.write_saved(tmp_path / "a")
    file = folder / "data-00000-of-00001.arrow"
    ends = list(accumulate(len(made.png(n)) for n in range(3)))
    content = file.read_bytes()
    assert struct.pack("<4i", 0, *ends) in content
    file.write_bytes(content.replace(struct.pack("<4i", 0, *ends), struct.pack("<4i", 0, *ends[:2], 2**30), 1))
    refused(folder, "data-00000-of-00001.arrow: cannot be read as a table")


def test_a_mapped_table_that_is_cut_off_while_in_use_is_named(tmp_path):
    folder = made.write_saved(tmp_path / "a")
    data = open_data(folder)
    os.truncate(folder / "data-00000-of-00001.arrow", 100)
    with pytest.raises(DataError, match=r"arrow row 0: .*its file was cut off while in use; restore it"):
        data.batch([0])


def test_rows_without_bytes_are_named(tmp_path):
    import pyarrow as pa

    rows = [{"bytes": made.png(0), "path": None}, {"bytes": None, "path": "/home/me/1.png"}]
    path = made.write_parquet(tmp_path / "a.parquet", pa.table({"image": rows}))
    refused(path, r"a.parquet row 1: .*the row holds no bytes; embed the images")


def test_tables_of_other_things_are_said(tmp_path):
    import pyarrow as pa

    refused(made.write_parquet(tmp_path / "a.parquet", pa.table({"x": [1, 2]})), r"no columns of encoded images \(x\)")
    both = pa.table({"a": [b"1"], "b": [b"2"]})
    refused(made.write_parquet(tmp_path / "b.parquet", both), r"several columns of encoded images \(a, b\)")
    (tmp_path / "c").mkdir()
    made.write_parquet(tmp_path / "c" / "1.parquet")
    made.write_parquet(tmp_path / "c" / "2.parquet", made.table_of_images(more=list(range(8))))
    refused(tmp_path / "c", r"2.parquet: has the columns image, label, more, 1.parquet has image, label")
    refused(made.write_parquet(tmp_path / "d.parquet", made.table_of_images().slice(0, 0)), "holds no rows")


def test_a_selection_of_a_saved_set_is_said(tmp_path):
    folder = made.write_saved(tmp_path / "a")
    state = json.loads((folder / "state.json").read_text()) | {"_indices_files": [{"filename": "indices.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))
    refused(folder, r"selection out of another file; call flatten_indices\(\)")
    (folder / "state.json").write_text("[")
    refused(folder, r"state.json: cannot be read as JSON")


def test_a_file_that_vanishes_is_named(tmp_path):
    path = made.write_parquet(tmp_path / "a.parquet")
    data = open_data(path)
    path.unlink()
    data._store._cache.clear()
    with pytest.raises(DataError, match=r"a.parquet.*No such file"):
        data.batch([0])


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = made.write_parquet(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet")
    refused(path, r"needs pyarrow, which is not installed; pip install 'meanflow\[hf\]'")


# the order of samples that lie in blocks

BLOCKS = Blocks(tuple([10] * 20), tuple([2**26] * 20))  # 4 blocks make a window of 256 MiB


def test_every_epoch_of_blocks_is_a_permutation_that_crosses_one_window_after_another():
    stream = block_order(BLOCKS, seed=3, start=0, count=600)
    for epoch in stream.split(200):
        assert torch.equal(epoch.sort().values, torch.arange(200))
        for window in epoch.split(40):
            assert len((window // 10).unique()) == 4
    first, second = stream[:200], stream[200:400]
    assert not torch.equal(first, second)
    # within a window samples of several blocks are mixed, not one block read after the other
    assert len((first[:10] // 10).unique()) > 1


def test_the_stream_of_blocks_from_a_position_is_a_slice():
    whole = block_order(BLOCKS, seed=7, start=0, count=500)
    for start in (0, 1, 39, 40, 199, 200, 333):
        assert torch.equal(block_order(BLOCKS, seed=7, start=start, count=100), whole[start : start + 100])


def test_blocks_that_fit_into_one_window_have_the_order_of_all_data():
    small = Blocks((3, 3, 2), (100, 100, 100))
    assert torch.equal(block_order(small, seed=1, start=5, count=30), order(8, seed=1, start=5, count=30))


def test_an_epoch_reads_every_block_once(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow_images, "CACHE_BYTES", 1)  # one row group in memory
    monkeypatch.setattr(sys.modules["meanflow.data.order"], "WINDOW_BYTES", 1)
    data = open_data(made.write_parquet(tmp_path / "a.parquet", rows=2))
    data._pool.threads = 1  # two that read at once would want a row group each
    reads = []
    read = data._store._read
    monkeypatch.setattr(data._store, "_read", lambda *block: reads.append(block) or read(*block))
    data.batch(data.order(seed=0, start=0, count=40))  # five epochs over four row groups
    assert len(reads) <= 5 * 4 + 1
    reads.clear()
    data.batch(order(8, seed=0, start=0, count=40))  # the plain order reads them over and over
    assert len(reads) > 5 * 4 + 1
