"""Whatever lies in a run's folder: it is used, or one message says what is wrong; what was whole stays whole."""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from fuzzed import clear, faults, fuzzing, harm, judge, run, tree
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from strategies import TINY

SETTINGS = ["--net.patch=4", "--loggers=csv", "--seed=12345", "--save-every=8"]
TRAIN = ["train", "digits", *TINY, *SETTINGS, "--out=run"]
NEWEST = "checkpoints/000000000016"
FILES = ("config.json", "metrics.jsonl", "environment.json", "metrics.csv", ".lock")
FILES += tuple(f"{NEWEST}/{n}" for n in ("state.json", "weights.safetensors", "training.safetensors"))
FILES += (f"{NEWEST}/ema-0.999.safetensors", "checkpoints/000000000008/state.json", "grids/000000000016.png")

leaf = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.just(10**12), st.just(-1)
)
anything = st.one_of(
    leaf, st.lists(leaf, max_size=3), st.dictionaries(st.text(max_size=3), leaf, max_size=2), st.just("MeanFlow")
)
change = st.one_of(
    st.tuples(st.just("json"), st.sampled_from(("config.json", f"{NEWEST}/state.json")), st.integers(0, 999), anything),
    st.tuples(st.just("key"), st.sampled_from(("config.json", f"{NEWEST}/state.json")), st.integers(0, 999)),
    st.tuples(st.just("flip"), st.sampled_from(FILES), st.floats(0, 1), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.sampled_from(FILES), st.floats(0, 1)),
    st.tuples(st.just("line"), st.sampled_from(("metrics.jsonl", "config.json")), st.text(max_size=20)),
    st.tuples(st.just("gone"), st.sampled_from((*FILES, NEWEST, "checkpoints", "grids"))),
    st.tuples(st.just("folder"), st.sampled_from((*FILES, "diagnosis.txt", "report"))),
    st.tuples(st.just("loop"), st.sampled_from((*FILES, NEWEST, "checkpoints", "grids"))),
    st.tuples(st.just("name"), st.sampled_from(("x", "latest", "000000000032", "é\udcff", "-1", "99999999999999"))),
    st.tuples(st.just("tensor"), st.sampled_from(("weights", "training", "ema-0.999")), st.integers(0, 99),
              st.sampled_from(("gone", "more", "shape", "nan", "dtype", "empty"))),
)  # fmt: skip

ASKED = (
    ["status", "run"],
    ["sample", "run", "--seeds=0-3", "--out=new.png"],
    ["sample", "run", "--raw", "--seeds=0", "--out=new.npz"],
    ["sample", "run", "--ema=0.999", "--seeds=0", "--classes=3", "--out=new"],
    ["convert", "to-authors-jax", "run", "new"],
    ["convert", "to-authors-torch", "run", "new.pth"],
    TRAIN,
    ["evaluate", "run", "--samples=100", "--steps=1", "--resamples=0"],
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a finished run in `run`; the cases have it as the working directory."""
    folder, before = tmp_path_factory.mktemp("runs"), os.getcwd()
    os.environ["COLUMNS"] = "200"
    os.chdir(folder)
    assert run(TRAIN).code == 0
    shutil.copytree("run", "kept")
    yield folder
    os.chdir(before)


def places(tree, path=()):
    """Every place in a JSON value."""
    found = [path] if path else []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return found + [place for key, value in items for place in places(value, (*path, key))]


def change_json(file: Path, which: int, value=..., signed=True) -> None:
    """Replace or remove one value of a JSON file, and sign a checkpoint's state again, so that it is read at all."""
    held = json.loads(file.read_text())
    *above, last = places(held)[which % len(places(held))]
    inner = held
    for key in above:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    sign(file, held)


def sign(file: Path, held) -> None:
    held.pop("checksum", None)
    if file.name == "state.json":
        held["checksum"] = hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps(held))


def change_tensor(folder: Path, name: str, which: int, how: str) -> None:
    """Change one tensor of a file as another version might have written it, checksums and all."""
    file = folder / NEWEST / f"{name}.safetensors"
    state = file.with_name("state.json")
    if not (file.is_file() and state.is_file()):
        return
    try:
        held = load_file(file)
    except SafetensorError:  # damaged by an earlier change
        return
    key = sorted(held)[which % len(held)]
    value = held.pop(key)
    if how == "more":
        held |= {key: value, "more.weight": value.clone()}
    elif how != "gone":
        held[key] = {
            "shape": value[None].contiguous(),
            "nan": value.float() * float("nan"),
            "dtype": value.to(dtype=__import__("torch").int32),
            "empty": value.new_empty(0),
        }[how]
    save_file(held, file)
    with suppress(ValueError, LookupError, TypeError):  # an earlier change has left nothing that could be signed
        about = json.loads(state.read_text())
        about["sha256"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
        sign(state, about)


def apply(folder: Path, changes) -> None:
    """Make the changes, as far as what they are about is still there."""
    for kind, *what in changes:
        path = folder / str(what[0])
        if kind == "name":
            (folder / "checkpoints").is_dir() and (folder / "checkpoints" / what[0]).mkdir(exist_ok=True)
        elif kind == "tensor":
            change_tensor(folder, *what)
        elif not path.exists():
            continue
        elif kind in ("gone", "folder", "loop"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            path.mkdir() if kind == "folder" else path.symlink_to(path) if kind == "loop" else None
        elif path.is_dir():
            continue
        elif kind in ("json", "key"):
            try:
                change_json(path, what[1], *what[2:])
            except ValueError:
                continue
        else:
            content = bytearray(path.read_bytes())
            at = min(int(what[1] * len(content)), len(content) - 1) if isinstance(what[1], float) else 0
            if kind == "flip" and content:
                content[at] ^= what[2]
            elif kind == "cut":
                del content[at:]
            elif kind == "line":
                content += what[1].encode(errors="surrogateescape") + b"\n"
            path.write_bytes(content)


def weigh(number: int) -> list[str]:
    """Which command is asked: the cheap ones more often."""
    return ASKED[number % 6] if number < 48 else ASKED[6 + number % 2]


@fuzzing(0.3)
@given(st.lists(change, min_size=1, max_size=3), st.integers(0, 49))
def test_runs(whole, changes, number):
    shutil.rmtree("run")
    shutil.copytree("kept", "run")
    apply(whole / "run", changes)
    words = weigh(number)
    before = tree(whole)
    outcome = run(words)
    after = tree(whole)
    trains = words[0] == "train"
    may_write = ["run"] if trains else ["new", "new.png", "new.npz", "new.pth", "run/report"]
    found = faults(outcome) + ([] if trains else harm(before, after, outcome, may_write, words[0] != "status"))
    before_step = whole / "run" / "checkpoints" / "000000000008"
    if trains and outcome.code != 0 and (whole / "kept/checkpoints/000000000008").is_dir():
        found += [] if (before_step.exists() or any(before_step.name in str(c) or c[1:2] in (("checkpoints",),)
                        for c in changes)) else ["a whole checkpoint is gone"]  # fmt: skip
    judge(words, found, outcome, f"changes: {changes!r}")
    clear(whole, {name: about for name, about in before.items() if not name.startswith("run/")} | tree_of_run(whole))


def tree_of_run(folder: Path):
    return {f"run/{name}": about for name, about in tree(folder / "run").items()}
