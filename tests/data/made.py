"""Small files of every format, made for a test."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
LABELS = [0, 1, 2, 0, 1, 2, 0, 1]
ALL = range(len(LABELS))


def pixels(number, height=6, width=4):
    """uint8 [height, width, 3], told by its number."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


def png(number, height=6, width=4):
    file = io.BytesIO()
    Image.fromarray(pixels(number, height, width)).save(file, "png")
    return file.getvalue()


def as_bytes(x):
    """A batch as uint8 [B, H, W, C]."""
    return ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def check_all(data, numbers=ALL):
    """The data hold the images of these numbers, in this order."""
    assert len(data) == len(numbers)
    assert np.array_equal(as_bytes(data.batch(range(len(data)))[0]), np.stack([pixels(n) for n in numbers]))


def by_class():
    """Numbers of the images in the order of class folders."""
    return sorted(range(len(LABELS)), key=lambda n: (LABELS[n], n))


def write_zip(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members if isinstance(members, list) else members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def class_folders(top="photos/"):
    return {f"{top}class-{label}/{number}.png": png(number) for number, label in enumerate(LABELS)}


def webdataset(numbers=ALL, **beside):
    """Members of a shard; beside: one function of the number for each suffix."""
    members = {}
    for number in numbers:
        members[f"{number:05}.png"] = png(number)
        members |= {f"{number:05}.{suffix}": made(number) for suffix, made in beside.items()}
    return members


def cls(number):
    return str(LABELS[number]).encode()


def write_idx(path, array, code=0x08):
    content = struct.pack(f">HBB{array.ndim}i", 0, code, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def mnist(folder, packed=".gz", train=8, held_out=3):
    grey = np.random.default_rng(0).integers(0, 256, (train + held_out, 6, 4), np.uint8)
    for name, part in (("train", slice(train)), ("t10k", slice(train, None))):
        write_idx(folder / f"{name}-images-idx3-ubyte{packed}", grey[part])
        write_idx(folder / f"{name}-labels-idx1-ubyte{packed}", np.arange(len(grey[part]), dtype=np.uint8) % 3)
    return grey


def cifar_batch(count, first=0, protocol=2, **labels):
    data = np.stack([pixels(first + n, 32, 32).transpose(2, 0, 1).ravel() for n in range(count)])
    columns = labels or {"labels": [LABELS[(first + n) % 8] for n in range(count)]}
    return pickle.dumps({b"data": data, **{key.encode(): value for key, value in columns.items()}}, protocol)


def cifar10(folder):
    folder.mkdir()
    for number in (1, 2):
        (folder / f"data_batch_{number}").write_bytes(cifar_batch(4, 4 * (number - 1)))
    (folder / "test_batch").write_bytes(cifar_batch(2, 100))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"cat", b"dog", b"frog"]}, 2))
    return folder


def table_of_images(**columns):
    """An Arrow table as Hugging Face datasets write it to parquet."""
    import pyarrow as pa

    images = [{"bytes": png(number), "path": f"{number}.png"} for number in ALL]
    table = pa.table({"image": images, "label": LABELS, **columns})
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog", "frog"], "_type": "ClassLabel"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_parquet(path, table=None, rows=3):
    import pyarrow.parquet as pq

    pq.write_table(table_of_images() if table is None else table, path, row_group_size=rows)
    return path


def write_saved(folder, table=None):
    """A folder as save_to_disk of Hugging Face datasets writes it."""
    import pyarrow as pa

    folder.mkdir(parents=True)
    table = table_of_images() if table is None else table
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table, max_chunksize=3)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder
