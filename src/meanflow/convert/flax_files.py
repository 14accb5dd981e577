"""Checkpoint folders of flax: nested dicts of arrays in msgpack, read and written without flax."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..data.files import whole_folder

Tree = dict[str, Any]
FILE, METADATA = "checkpoint", "_METADATA"
# Extension types and the mark of split arrays in flax.serialization.
_ARRAY, _SCALAR, _CHUNKED = 1, 3, "__msgpack_chunked_array__"
_CHUNK_BYTES = 2**30  # arrays above this are split, as flax does


def read_tree(checkpoint: Path) -> Tree:
    """The content of a checkpoint: the folder checkpoint_STEP, a folder with several (the newest), or the file.

    Raises FileNotFoundError or ValueError saying what is wrong.
    """
    file = _file(checkpoint)
    msgpack = _msgpack()
    try:
        tree = msgpack.unpackb(file.read_bytes(), ext_hook=_decoded, raw=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException, AttributeError) as error:
        raise ValueError(
            f"{file} is damaged, cut off, or no flax checkpoint: {error or type(error).__name__}"
        ) from error
    if not isinstance(tree, dict):
        raise ValueError(f"{file} holds a {type(tree).__name__}, wanted a training state of flax")
    return _joined(tree)


def write_tree(tree: Tree, out: Path, step: int) -> Path:
    """Write `out`/checkpoint_STEP, whole or not at all; raises ValueError when it is there already."""
    folder = out / f"checkpoint_{step}"
    if folder.exists():
        raise ValueError(f"{folder} exists already; choose another output folder")
    with whole_folder(folder) as aside:
        (aside / FILE).write_bytes(_msgpack().packb(_split(tree), default=_encoded, strict_types=True))
        (aside / METADATA).write_text(json.dumps({"tree_metadata": dict(_metadata(tree))}), encoding="utf-8")
    return folder


def flat(tree: Tree, path: str = "") -> dict[str, np.ndarray]:
    """Arrays by path, "net/blocks/layers_0/..."."""
    found: dict[str, np.ndarray] = {}
    for key, value in tree.items():
        name = f"{path}/{key}" if path else str(key)
        found |= flat(value, name) if isinstance(value, dict) else {name: np.asarray(value)}
    return found


def nested(arrays: dict[str, np.ndarray]) -> Tree:
    """The inverse of flat, with keys in alphabetical order."""
    tree: Tree = {}
    for path in sorted(arrays):
        *parents, name = path.split("/")
        room = tree
        for parent in parents:
            room = room.setdefault(parent, {})
        room[name] = arrays[path]
    return tree


def _file(checkpoint: Path) -> Path:
    if checkpoint.is_file():
        return checkpoint
    if (checkpoint / FILE).is_file():
        return checkpoint / FILE
    steps = {int(p.name.rpartition("_")[2]): p for p in checkpoint.glob("checkpoint_*") if p.name[11:].isdigit()}
    if not steps:
        raise FileNotFoundError(
            f"{checkpoint}: no flax checkpoint there; give a folder checkpoint_STEP with the file {FILE!r} in it"
        )
    return steps[max(steps)] / FILE


def _msgpack() -> Any:
    try:
        import msgpack
    except ImportError as error:
        raise ValueError("flax checkpoints need the package msgpack: pip install 'meanflow[convert]'") from error
    return msgpack


def _decoded(code: int, data: bytes) -> Any:
    if code not in (_ARRAY, _SCALAR):
        raise ValueError(f"extension type {code} is not one of flax's arrays")
    shape, name, buffer = _msgpack().unpackb(data, raw=False)
    if name == "bfloat16":
        # The upper half of a float32.
        array = (np.frombuffer(buffer, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        array = np.frombuffer(buffer, np.dtype(name))
    array = array.reshape(shape)
    return array if code == _ARRAY else array[()]


def _encoded(value: Any) -> Any:
    msgpack = _msgpack()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"cannot write {type(value).__name__} to a flax checkpoint")
    packed = msgpack.packb((list(value.shape), value.dtype.name, np.ascontiguousarray(value).tobytes()))
    return msgpack.ExtType(_ARRAY, packed)


def _joined(tree: Any) -> Any:
    """Arrays that flax split because of their size, in one piece again."""
    if isinstance(tree, list):
        return [_joined(value) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if tree.get(_CHUNKED):
        chunks = [tree["chunks"][str(i)] for i in range(len(tree["chunks"]))]
        return np.concatenate(chunks).reshape(tuple(tree["shape"][str(i)] for i in range(len(tree["shape"]))))
    return {key: _joined(value) for key, value in tree.items()}


def _split(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _split(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_split(value) for value in tree]
    if not isinstance(tree, np.ndarray) or tree.nbytes <= _CHUNK_BYTES:
        return tree
    line, size = tree.reshape(-1), _CHUNK_BYTES // tree.itemsize
    return {
        _CHUNKED: True,
        "shape": {str(i): n for i, n in enumerate(tree.shape)},
        "chunks": {str(i): line[start : start + size] for i, start in enumerate(range(0, len(line), size))},
    }


def _metadata(tree: Any, keys: tuple[tuple[str, int], ...] = ()) -> Iterator[tuple[str, Any]]:
    """One entry a leaf: the path with the kind of each key (2 in a dict, 1 in a list), and the type of the value."""
    if isinstance(tree, dict):
        for key in tree:
            yield from _metadata(tree[key], (*keys, (str(key), 2)))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from _metadata(value, (*keys, (str(i), 1)))
    else:
        kind = "None" if tree is None else "np.ndarray" if isinstance(tree, np.ndarray) else "scalar"
        yield (
            str(tuple(key for key, _ in keys)),
            {
                "key_metadata": [{"key": key, "key_type": of} for key, of in keys],
                "value_metadata": {"value_type": kind, "skip_deserialize": True},
            },
        )
