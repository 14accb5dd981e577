"""Whatever a data file or folder holds: it is read, or one message names it; what is written then can be read again."""

import json
import os
import pickle
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from fuzzed import clear, faults, fuzzing, harm, judge, run, tree
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from strategies import TINY

from damage import changed

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import made

KINDS = ["npy", "npz", "csv", "folder", "zip", "tar", "idx", "idx.gz", "cifar", "prepared"]
KINDS += ["parquet"] if find_spec("pyarrow") else []

dtypes = st.sampled_from(("u1", "i1", "i4", "i8", "u8", "f2", "f4", "f8", "?", "c8", "S3", "U2", "O", "M8[s]", ">f4"))
shapes = st.lists(st.sampled_from((0, 1, 2, 3, 4, 5, 8)), max_size=5)
floats = st.sampled_from((0.0, 1.0, -1.0, 0.5, 255.0, 1e38, 1e-38, np.nan, np.inf, -np.inf))
names = st.sampled_from(("a", "ü 1", "日本", "a\nb", "-rf", "🙂", "x" * 100, ".hidden", "metadata", "train", "test"))
keys = st.sampled_from(("images", "x", "labels", "y", "data", "cond", "latents", "arr_0", "arr_1", "ünï", "a/b"))
suffixes = st.sampled_from(("png", "png", "png", "jpg", "gif", "webp", "txt", "csv", "jsonl", "npy", ""))
modes = st.sampled_from(("RGB", "L", "RGBA", "P", "1", "LA", "I;16", "CMYK", "F"))
change = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("flip"), st.floats(0, 1), st.integers(1, 255)),
    st.tuples(st.just("write"), st.floats(0, 0.1), st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("drop"), st.floats(0, 1), st.integers(1, 64)),
)
changes = st.one_of(st.just([]), st.just([]), st.lists(change, min_size=1, max_size=2))


@st.composite
def array(draw):
    shape, dtype = draw(shapes), np.dtype(draw(dtypes))
    x = np.zeros(shape, dtype)
    if dtype.kind in "fc" and x.size:
        x.flat[draw(st.integers(0, x.size - 1))] = draw(floats)
    elif dtype.kind in "iu" and x.size:
        x.flat[draw(st.integers(0, x.size - 1))] = draw(st.integers(0, 120))
    return np.asfortranarray(x) if draw(st.booleans()) and x.ndim else x


@st.composite
def picture(draw) -> bytes:
    import io

    side, mode, kind = draw(st.sampled_from((1, 2, 4, 8, 9))), draw(modes), draw(st.sampled_from(("png", "png", "gif")))
    image, file = Image.effect_noise((side, draw(st.sampled_from((side, 1, 8)))), 90), io.BytesIO()
    try:
        image.convert(mode).save(file, kind)
    except (OSError, ValueError):  # this kind cannot hold this mode
        return b"\x89PNG\r\n"
    return changed(file.getvalue(), draw(changes))


@st.composite
def members(draw) -> dict[str, bytes]:
    """Names and contents as a folder or an archive may hold them."""
    held, flat = {}, draw(st.booleans())
    for n in range(draw(st.integers(0, 5))):
        name = f"{n}-{draw(names)}.{draw(suffixes)}" if draw(st.integers(0, 9)) else f"metadata.{draw(suffixes)}"
        path = name if flat or not draw(st.integers(0, 9)) else f"{draw(names)}/{name}"
        held[path] = draw(st.one_of(picture(), picture(), picture(), st.binary(max_size=12)))
    return held


cells = st.sampled_from(
    ("1", "2.5", "-3", "nan", "inf", "", "a", "ü", '"x"', '"', "1e400", "0x1", " 4", "1,2", "\0", "\r")
)


@st.composite
def text_table(draw) -> bytes:
    width = draw(st.integers(0, 4))
    head = draw(st.lists(st.sampled_from(("a", "b", "label", "x", "a", "1", "", "é")), min_size=width, max_size=width))
    rows = draw(st.lists(st.lists(cells, min_size=max(width - 1, 0), max_size=width + 1), max_size=4))
    good = [[str(n + m) for m in range(width)] for n in range(draw(st.integers(0, 3)))]
    text = "\n".join(",".join(row) for row in [head, *good, *rows])
    return text.encode(draw(st.sampled_from(("utf-8", "utf-8-sig", "utf-16", "latin-1"))), errors="replace")


cell = st.one_of(st.none(), st.text(max_size=3), st.floats(), st.binary(max_size=9))
image = st.dictionaries(st.just("bytes"), st.binary(max_size=9), min_size=1)
column = st.lists(st.one_of(cell, image), min_size=2, max_size=2)


def write_npz(path: Path, arrays) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.savez(path, **arrays)


@st.composite
def made_data(draw, kind: str):
    """A function that writes data of this kind below a folder and returns what to name, and what was drawn."""
    if kind == "npy":
        x, how = draw(array()), draw(changes)
        return lambda f: _npy(f / "d.npy", x, how), f"{x.dtype}{x.shape} {how}"
    if kind == "npz":
        arrays, how = draw(st.dictionaries(keys, array(), max_size=3)), draw(changes)
        return lambda f: _npz(f / "d.npz", arrays, how), f"{[(k, x.dtype, x.shape) for k, x in arrays.items()]} {how}"
    if kind == "csv":
        content = draw(text_table())
        return lambda f: _bytes(f / "d.csv", content), repr(content)
    if kind in ("folder", "zip", "tar"):
        held, how = draw(members()), draw(changes)
        link = draw(st.sampled_from((None, None, "loop", "dangling", "zero", "fifo", "folder")))
        text = repr({n: c[:20] for n, c in held.items()})
        return lambda f: _members(f, kind, held, how, link), f"{text} {how} {link}"
    if kind == "cifar":
        label = draw(st.one_of(st.lists(st.integers(-3, 300), max_size=4), st.just("x"), st.none(), st.just({1: 2})))
        more, how = draw(st.dictionaries(keys, st.integers(), max_size=2)), draw(changes)
        return lambda f: _cifar(f / "d", label, more, how), f"{label} {more} {how}"
    if kind == "prepared":
        which, value = (
            draw(st.integers(0, 99)),
            draw(st.one_of(st.none(), st.integers(), st.text(max_size=3), st.just({}))),
        )
        return lambda f: _prepared(f / "d", which, value), f"{which} {value!r}"
    if kind == "parquet":
        drawn, how = draw(st.dictionaries(keys, column, max_size=2)), draw(changes)
        return lambda f: _parquet(f / "d.parquet", drawn, how), f"{drawn} {how}"
    shape, code, how = draw(shapes), draw(st.sampled_from((8, 8, 8, 9, 11, 13, 14, 99))), draw(changes)
    return lambda f: _idx(f / f"d-images-idx3-ubyte{kind[3:]}", shape, code, how), f"{shape} {code} {how}"


def _bytes(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return path.name


def _npy(path, x, how):
    np.save(path, x, allow_pickle=True)
    return _bytes(path, changed(path.read_bytes(), how))


def _npz(path, arrays, how):
    write_npz(path, arrays)
    return _bytes(path, changed(path.read_bytes(), how))


def _idx(path, shape, code, how):
    made.write_idx(path, np.zeros(shape, np.uint8), code)
    return _bytes(path, changed(path.read_bytes(), how))


def _members(folder, kind, held, how, link):
    if kind != "folder":
        path = folder / f"d.{kind}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (made.write_zip if kind == "zip" else made.write_tar)(path, held)
        return _bytes(path, changed(path.read_bytes(), how))
    (folder / "d").mkdir()
    for name, content in held.items():
        path = folder / "d" / name
        if path.exists() or (path.parent.exists() and not path.parent.is_dir()):
            continue
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    target = {"loop": "link.png", "dangling": "gone.png", "zero": "/dev/zero", "folder": "."}
    if link == "fifo":
        os.mkfifo(folder / "d" / "link.png")
    elif link:
        (folder / "d" / ("link.png" if link != "folder" else "link")).symlink_to(target[link])
    return "d"


def _cifar(folder, label, more, how):
    folder.mkdir()
    held = {b"data": made.pixels(0, 32, 32).reshape(1, -1).repeat(2, 0), b"labels": label, **more}
    (folder / "data_batch_1").write_bytes(changed(pickle.dumps(held, 2), how))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"cat", b"dog"]}, 2))
    return "d"


def _parquet(path, columns, how):
    import pyarrow as pa

    try:
        table = pa.table(columns) if columns else made.table_of_images()
        made.write_parquet(path, table)
    except (pa.ArrowException, TypeError, ValueError):  # values that no column can hold
        made.write_parquet(path)
    return _bytes(path, changed(path.read_bytes(), how))


def _prepared(folder, which, value):
    folder.mkdir()
    np.save(folder / "images.npy", np.zeros((4, 1, 8, 8), np.uint8))
    np.save(folder / "labels.npy", np.arange(4))
    header = {
        "format": "meanflow-data",
        "version": 1,
        "x": "images.npy",
        "cond": "labels.npy",
        "length": 4,
        "made_from": 0,
    }
    header |= {"shape": [1, 8, 8], "image": True, "classes": 4, "class_names": list("abcd")}
    header[sorted(header)[which % len(header)]] = value
    (folder / "meanflow-data.json").write_text(json.dumps(header))
    return "d"


data = st.sampled_from(KINDS).flatmap(made_data)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("files"), os.getcwd()
    os.environ["COLUMNS"] = "200"
    os.chdir(folder)
    yield folder
    os.chdir(before)


asked = st.sampled_from(
    [["prepare", "{}", out, *more] for out in ("new", "new.npz", "new.npy") for more in ([], ["--size=4"], ["--mode=L"],
     ["--skip-broken"], ["--cond=none"], ["--split=held_out"])] + [["prepare", "{}", "new"]] * 12
    + [["train", "{}", "--dry-run"], ["train", "{}", *TINY, "--out=new", "--loggers=csv", "--recipe=points"]]
)  # fmt: skip


@fuzzing(0.3)
@given(data, asked)
def test_files(place, drawn, asked):
    empty = tree(place)
    write, note = drawn
    name = write(place)
    words = [name if word == "{}" else word for word in asked]
    before = tree(place)
    outcome = run(words)
    found = faults(outcome) + harm(
        before, tree(place), outcome, ["new", "new.npz", "new.npy"], "--dry-run" not in words
    )
    if outcome.code and "full helptext" not in outcome.err and name not in outcome.err:
        found.append("the message does not name the data")
    if outcome.code == 0 and words[0] == "prepare":
        again = run(["prepare", words[2], "again"])
        found += [] if again.code == 0 else [f"what was written cannot be read: {again.err} {again.error}"]
    judge(words, found, outcome, note)
    clear(place, empty)
