"""Which images a folder or an archive holds, of which classes, and in which split."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from .errors import DataError
from .images import SUFFIXES

SPLITS = ("train", "held_out", "all")
TRAIN_NAMES = ("train", "training")
HELD_OUT_NAMES = ("held_out", "test", "testing", "val", "valid", "validation")  # the first that is there counts
TABLES = ("metadata.csv", "metadata.jsonl", "attributes.csv")


@dataclass(frozen=True)
class Listing:
    """Positions of the images among the names given, their names below the common folder, and one label each where
    there are classes; `table` is the position of a file with attributes."""

    positions: list[int]
    names: list[str]
    labels: list[int] | None = None
    class_names: tuple[str, ...] | None = None
    table: int | None = None


def list_images(names: Sequence[str], where: str, split: str, *, archive: bool = False) -> Listing:
    """The images among `names` ("/" between parts): one folder a class (sorted), or all at the top and no classes.

    Where the folders at the top are called train and test (or val, held_out, ...), `split` chooses among them. In an
    archive, folders that hold everything else are looked through. Raises DataError saying what is there.
    """
    check_split(where, split)
    parts = {position: visible for position, name in enumerate(names) if (visible := _visible(name))}
    if archive:
        parts = _without_common(parts)
    parts = _of_split(parts, split, where)
    images = {p: path for p, path in parts.items() if PurePosixPath(path[-1]).suffix.lower() in SUFFIXES}
    if not images:
        raise DataError(
            f"{where}: holds no images but {_summary([path[-1] for path in parts.values()])}; wanted files that end "
            f"in {', '.join(sorted(SUFFIXES))}"
        )
    table = next((p for p, path in parts.items() if len(path) == 1 and path[0] in TABLES), None)
    return _classified(images, where, table)


def check_split(where: str, split: str) -> None:
    """DataError unless `split` is one of the three."""
    if split not in SPLITS:
        raise DataError(f"{where}: has no split {split!r}; choose one of {', '.join(SPLITS)}")


def no_split(where: str, split: str) -> DataError:
    """What is said of data of one piece that are asked for their held-out part."""
    return DataError(
        f"{where}: has no split {split!r}; pass the folder or file of that part itself, or put the images into "
        f"folders named train and test"
    )


def printable(name: str) -> str:
    """The name with � for bytes that were no UTF-8, so that it can be printed and stored as JSON."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def _visible(name: str) -> tuple[str, ...]:
    """The parts of a name, empty if one is hidden; a leading "/" and "." say nothing, ".." is a part like others."""
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    hidden = any(part.startswith(".") and part != ".." for part in parts) or "__MACOSX" in parts
    return () if hidden else parts


def _without_common(parts: dict[int, tuple[str, ...]]) -> dict[int, tuple[str, ...]]:
    while parts and all(len(path) > 1 for path in parts.values()) and len({path[0] for path in parts.values()}) == 1:
        parts = {position: path[1:] for position, path in parts.items()}
    return parts


def _of_split(parts: dict[int, tuple[str, ...]], split: str, where: str) -> dict[int, tuple[str, ...]]:
    """The part that `split` names, without the folder of that name."""
    folders = {path[0] for path in parts.values() if len(path) > 1}
    train = next((name for name in TRAIN_NAMES if name in folders), None)
    held_out = next((name for name in HELD_OUT_NAMES if name in folders), None)
    if train is None or not folders <= {*TRAIN_NAMES, *HELD_OUT_NAMES}:
        if split == "held_out":
            raise no_split(where, split)
        return parts
    chosen = folders if split == "all" else {train if split == "train" else held_out}
    kept = {position: path[1:] for position, path in parts.items() if len(path) > 1 and path[0] in chosen}
    if not kept:
        raise no_split(where, split)
    return kept


def _classified(images: dict[int, tuple[str, ...]], where: str, table: int | None) -> Listing:
    ordered = sorted(images.items(), key=lambda item: "/".join(item[1]))
    positions, paths = [position for position, _ in ordered], [path for _, path in ordered]
    names = ["/".join(path) for path in paths]
    direct = next((name for name in names if "/" not in name), None)
    nested = next((name for name in names if "/" in name), None)
    if table is not None or nested is None:
        return Listing(positions, names, table=table)
    if direct is not None:
        raise DataError(
            f"{where}: holds images of its own ({direct}) and in sub-folders ({nested}); "
            f"put every image into the sub-folder of its class, or all of them directly into the folder"
        )
    class_names = sorted({path[0] for path in paths})
    number = {name: label for label, name in enumerate(class_names)}
    labels = [number[path[0]] for path in paths]
    return Listing(positions, names, labels, tuple(map(printable, class_names)))


def _summary(found: Sequence[str]) -> str:
    suffixes = Counter(PurePosixPath(name).suffix.lower() or "no ending" for name in found)
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(5))
    return f"{len(found)} other files ({kinds})" if found else "nothing at all"
