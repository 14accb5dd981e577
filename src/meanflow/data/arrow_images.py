"""Encoded images in tables: parquet files, and folders that Hugging Face datasets wrote (save_to_disk)."""

import io
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .attributes import Conditions, chosen_columns, from_columns
from .encoded_images import EncodedImages, ImageOptions, Indices
from .errors import DataError
from .files import MEMBER_BYTES
from .listing import HELD_OUT_NAMES, TRAIN_NAMES, check_split, no_split
from .order import WINDOW_BYTES, Blocks

IMAGE_NAMES = ("image", "img", "jpg", "png", "picture", "bytes")
CACHE_BYTES = WINDOW_BYTES * 5 // 4  # a window, and what is left of the one before where two meet


def parquet_paths(folder: Path) -> list[Path]:
    """The parquet files of a folder, and in its folders data, train, test and the like, sorted."""
    below = ("", "data/", *(f"{name}/" for name in (*TRAIN_NAMES, *HELD_OUT_NAMES)))
    return sorted(path for inner in below for path in folder.glob(f"{inner}*.parquet"))


def is_saved(folder: Path) -> bool:
    """Whether a folder is one that save_to_disk of Hugging Face datasets wrote."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def parquet(
    paths: Sequence[Path],
    where: str,
    options: ImageOptions | None = None,
    *,
    split: str = "train",
    cond: str | None = None,
) -> EncodedImages:
    """The images of parquet files with one column of encoded images ({bytes, path}, or bytes) and columns beside it.

    split: among files or folders called train and test (or validation). cond: the columns, as in from_columns; names
    of classes come from the metadata of Hugging Face. At most 320 MiB of row groups are kept in memory; samples are
    shuffled within windows of 256 MiB. Needs pyarrow. Raises DataError naming the file.
    """
    check_split(where, split)
    return _images(ParquetStore(_of_split(paths, where, split), where), options, cond)


def saved(
    folder: Path, options: ImageOptions | None = None, *, split: str = "train", cond: str | None = None
) -> EncodedImages:
    """The images of a folder that save_to_disk wrote (a Dataset, or a DatasetDict with splits), memory-mapped.

    split, cond: as for `parquet`. Needs pyarrow. Raises DataError naming the file.
    """
    check_split(str(folder), split)
    parts = _parts(folder, split)
    paths = [path for part in parts for path in _arrow_files(part)]
    return _images(ArrowStore(paths, str(folder)), options, cond)


def arrow(
    path: Path, options: ImageOptions | None = None, *, split: str = "train", cond: str | None = None
) -> EncodedImages:
    """The images of one Arrow file of Hugging Face datasets; options as for `parquet`."""
    check_split(str(path), split)
    if split == "held_out":
        raise no_split(str(path), split)
    return _images(ArrowStore([path], str(path)), options, cond)


def _images(store: "_TableStore", options: ImageOptions | None, cond: str | None) -> EncodedImages:
    names = chosen_columns(store.usable, cond, store.where) if store.usable or cond else []
    columns = {name: store.column(name) for name in names}
    count = store.length
    conditions = from_columns(columns, count, store.where, cond, store.class_names) if columns else Conditions()
    return EncodedImages(store, range(count), conditions, options)


class _TableStore:
    """Rows of encoded images in several files, each of several blocks."""

    kind = "table"

    def __init__(self, paths: Sequence[Path], where: str) -> None:
        self.where, self._paths = where, list(paths)
        self._start()
        with _naming(Path(where)):
            self._index()

    def _index(self) -> None:
        """Find out where every row lies."""
        rows, size, block = [], [], []
        with _naming(self._paths[0]):
            first = self._schema(0)
            self._image, self._nested = _image_column(first, self._paths[0])
        for number, path in enumerate(self._paths):
            with _naming(path):
                found = self._schema(number)
                if found.names != first.names:
                    raise DataError(
                        f"{path}: has the columns {', '.join(found.names)}, {self._paths[0].name} has "
                        f"{', '.join(first.names)}; pass the files of one data set"
                    )
                for group, (count, length) in enumerate(self._groups(number)):
                    block.append((number, group))
                    rows.append(count)
                    size.append(length)
        if not sum(rows):
            raise DataError(f"{self.where}: holds no rows; pass files with images")
        self._block, self._rows, self._bytes = block, np.array(rows, np.int64), np.array(size, np.int64)
        self._first = np.concatenate([[0], np.cumsum(self._rows)])
        self.length = int(self._first[-1])
        self.usable = [f.name for f in first if f.name != self._image and _is_plain(f.type)]
        self.class_names = _class_names(first)
        self._file_sizes = [(path, path.stat().st_size) for path in self._paths]

    def name(self, position: int) -> str:
        block = self._block_of(position)
        path, first = self._block[block][0], int(self._first[block])
        inner = sum(int(n) for (p, _), n in zip(self._block[:block], self._rows[:block], strict=True) if p == path)
        return f"{self._paths[path].name} row {inner + position - first}"

    def open(self, position: int) -> BinaryIO:
        block = self._block_of(position)
        value = self._load(block)[position - int(self._first[block])].as_py()
        if value is None:
            raise ValueError("the row holds no bytes; embed the images: only their paths were saved")
        if len(value) > MEMBER_BYTES:
            raise ValueError(f"has {len(value):,} bytes, more than an image can have")
        return io.BytesIO(value)

    def sizes(self, positions: Sequence[int]) -> Iterable[tuple[str, int]]:
        yield from ((path.name, path.stat().st_size) for path in self._paths)
        yield ("rows", len(positions))

    def blocks(self, positions: Indices) -> Blocks | None:
        kept = np.bincount(np.searchsorted(self._first, positions, "right") - 1, minlength=len(self._rows))
        return Blocks(tuple(kept.tolist()), tuple(self._bytes.tolist()))

    def column(self, name: str) -> list[object]:
        """All values of a column."""
        values: list[object] = []
        for number, path in enumerate(self._paths):
            with _naming(path):
                values += self._column(number, name)
        return values

    def _block_of(self, position: int) -> int:
        return int(np.searchsorted(self._first, position, "right")) - 1

    def _start(self) -> None:
        self._lock, self._process = threading.Lock(), os.getpid()
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._opened: dict[int, Any] = {}

    def _load(self, block: int) -> Any:
        """The encoded images of a block; those used last stay in memory."""
        # what another process mapped or locked is not ours after a fork
        if self._process != os.getpid():
            self._start()
        with self._lock:
            if block not in self._cache:
                self._cache[block] = self._read(*self._block[block])
                while len(self._cache) > 1 and sum(int(self._bytes[b]) for b in self._cache) > CACHE_BYTES:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(block)
            return self._cache[block]

    def _binary(self, column: Any) -> Any:
        return column.field("bytes") if self._nested else column

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_cache", "_opened", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _schema(self, number: int) -> Any:
        raise NotImplementedError

    def _groups(self, number: int) -> Iterable[tuple[int, int]]:
        raise NotImplementedError

    def _column(self, number: int, name: str) -> list[object]:
        raise NotImplementedError

    def _read(self, number: int, group: int) -> Any:
        raise NotImplementedError


class ParquetStore(_TableStore):
    """Row groups of parquet files: unpacked as a whole, so they are kept and their rows seen together."""

    kind = "parquet"

    def _file(self, number: int) -> Any:
        import pyarrow.parquet as pq

        if number not in self._opened:
            self._opened[number] = pq.ParquetFile(self._paths[number]).metadata
        return pq.ParquetFile(self._paths[number], metadata=self._opened[number])

    def _schema(self, number: int) -> Any:
        return self._file(number).schema_arrow

    def _groups(self, number: int) -> Iterable[tuple[int, int]]:
        metadata = self._file(number).metadata
        for index in range(metadata.num_row_groups):
            # of the whole group: looking at a damaged column ends the process (pyarrow 26, std::terminate)
            yield metadata.row_group(index).num_rows, metadata.row_group(index).total_byte_size

    def _column(self, number: int, name: str) -> list[object]:
        return self._file(number).read(columns=[name], use_threads=False).column(name).to_pylist()

    def _read(self, number: int, group: int) -> Any:
        table = self._file(number).read_row_group(group, columns=[self._image], use_threads=False)
        return self._binary(table.column(self._image).combine_chunks())


class ArrowStore(_TableStore):
    """Record batches of memory-mapped Arrow streams: rows can be read one by one, in any order."""

    kind = "arrow"

    def _batches(self, number: int) -> Any:
        import pyarrow as pa

        if number not in self._opened:
            with pa.ipc.open_stream(pa.memory_map(str(self._paths[number]))) as stream:
                schema, batches = stream.schema, list(stream)
            for batch in batches:
                batch.validate(full=True)  # an offset beyond the file would end the process without a word
            self._opened[number] = schema, batches
        return self._opened[number]

    def _schema(self, number: int) -> Any:
        return self._batches(number)[0]

    def _groups(self, number: int) -> Iterable[tuple[int, int]]:
        return ((batch.num_rows, batch.nbytes) for batch in self._batches(number)[1])

    def _column(self, number: int, name: str) -> list[object]:
        return [value for batch in self._batches(number)[1] for value in batch.column(name).to_pylist()]

    def _read(self, number: int, group: int) -> Any:
        return self._binary(self._batches(number)[1][group].column(self._image))

    def open(self, position: int) -> BinaryIO:
        path, size = self._file_sizes[self._block[self._block_of(position)][0]]
        if os.path.exists(path) and os.path.getsize(path) < size:  # so would reading beyond the end of a mapped file
            raise ValueError("its file was cut off while in use; restore it")
        return super().open(position)

    def blocks(self, positions: Indices) -> None:
        return None


class _naming:
    """Turns what pyarrow raises into a DataError that names the file, and says what to install where it lacks."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise DataError(
                f"{self._path}: reading it needs pyarrow, which is not installed; pip install 'meanflow[hf]'"
            ) from error

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, DataError) or not isinstance(error, Exception):
            return
        raise DataError(
            f"{self._path}: cannot be read as a table ({str(error) or type(error).__name__}); it may be cut off: fetch "
            f"or write it again"
        ) from error


def _image_column(schema: Any, path: Path) -> tuple[str, bool]:
    """The column of encoded images, and whether it is a struct {bytes, path}."""
    import pyarrow.types as kinds

    nested = [f.name for f in schema if kinds.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    plain = [f.name for f in schema if kinds.is_binary(f.type) or kinds.is_large_binary(f.type)]
    found = nested or plain
    chosen = [name for name in IMAGE_NAMES if name in found][:1] or found
    if len(chosen) != 1:
        raise DataError(
            f"{path}: has {'several' if found else 'no'} columns of encoded images ({', '.join(schema.names)}); wanted "
            f"one of type binary or struct{{bytes, path}}, called image where there are several"
        )
    return chosen[0], bool(nested)


def _is_plain(kind: Any) -> bool:
    import pyarrow.types as kinds

    if kinds.is_list(kind) or kinds.is_fixed_size_list(kind) or kinds.is_large_list(kind):
        return _is_number(kind.value_type)
    return _is_number(kind) or kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_dictionary(kind)


def _is_number(kind: Any) -> bool:
    import pyarrow.types as kinds

    return kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind)


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Names of the values of ClassLabel columns, out of the metadata of Hugging Face datasets."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {k: [str(name) for name in f["names"]] for k, f in features.items() if f.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _of_split(paths: Sequence[Path], where: str, split: str) -> list[Path]:
    """The files of a split, told by their names or folders, as on the hub: train-00000-of-00002.parquet."""

    def of(words: Sequence[str]) -> list[Path]:
        for word in words:
            chosen = [path for path in paths if word in (path.parent.name, path.name.split("-")[0].split(".")[0])]
            if chosen:
                return chosen
        return []

    train, held_out = of(TRAIN_NAMES), of(HELD_OUT_NAMES)
    if split == "all" or (split == "train" and not train and not held_out):
        return list(paths)
    chosen = train if split == "train" else held_out
    if not chosen:
        raise no_split(where, split)
    return chosen


def _parts(folder: Path, split: str) -> list[Path]:
    """The folders of the data sets in a folder that save_to_disk wrote."""
    if not (folder / "dataset_dict.json").is_file():
        if split == "held_out":
            raise no_split(str(folder), split)
        return [folder]
    listed = _json(folder / "dataset_dict.json").get("splits", [])
    names = [name for name in listed if isinstance(name, str)]
    wanted = {"train": TRAIN_NAMES, "held_out": HELD_OUT_NAMES, "all": tuple(names)}[split]
    chosen = [name for name in wanted if name in names][: None if split == "all" else 1]
    if not chosen:
        raise DataError(
            f"{folder}: has the splits {', '.join(names)}, none for {split!r}; name the folder of one itself"
        )
    return [folder / name for name in chosen]


def _arrow_files(folder: Path) -> list[Path]:
    state = _json(folder / "state.json")
    if state.get("_indices_files"):
        raise DataError(f"{folder}: is a selection out of another file; call flatten_indices() before save_to_disk()")
    entries = state.get("_data_files")
    names = [Path(str(entry.get("filename"))).name for entry in entries or [] if isinstance(entry, dict)]
    if not names:
        raise DataError(f"{folder / 'state.json'}: names no files; write the folder again with save_to_disk()")
    return [folder / name for name in names]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); write the folder again") from error
    return found if isinstance(found, dict) else {}
