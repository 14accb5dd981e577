"""Which images a folder holds, and of which classes."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class Listing:
    """Relative names with "/" between their parts, sorted, and one label a name where there are classes."""

    names: list[str]
    labels: list[int] | None = None
    class_names: tuple[str, ...] | None = None


def list_images(root: Path) -> Listing:
    """The images of a folder: one sub-folder a class (sorted), or all directly in it and no classes."""
    if not root.is_dir():
        raise DataError(
            f"{root}: "
            f"{'is a file, not a folder' if root.exists() else 'there is no such folder'}; pass "
            f"a folder of images"
        )
    found = sorted(_visible_files(root))
    names = [name for name in found if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not names:
        raise DataError(
            f"{root}: holds no images but {_summary(found)}; wanted files that end in {', '.join(sorted(SUFFIXES))}"
        )
    direct = [name for name in names if "/" not in name]
    nested = [name for name in names if "/" in name]
    if direct and nested:
        raise DataError(
            f"{root}: holds images of its own ({direct[0]}) and in sub-folders ({nested[0]}); "
            f"put every image into the sub-folder of its class, or all of them directly into the "
            f"folder"
        )
    return Listing(direct) if direct else _with_classes(root, nested)


def _with_classes(root: Path, names: list[str]) -> Listing:
    class_names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != ".")
    number = {name: label for label, name in enumerate(class_names)}
    labels = [number[name.split("/", 1)[0]] for name in names]
    empty = sorted(set(range(len(class_names))) - set(labels))
    if empty:
        raise DataError(
            f"{root}: the class folder {class_names[empty[0]]!r} holds no images ({len(empty)} "
            f"such of {len(class_names)}); fill it or remove it, since every folder counts as a "
            f"class"
        )
    return Listing(names, labels, tuple(class_names))


def _visible_files(root: Path) -> Iterator[str]:
    visited = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        visited.add(os.path.realpath(folder))
        # a link to a folder above itself would be walked for ever
        folders[:] = [
            name for name in folders if name[0] != "." and os.path.realpath(os.path.join(folder, name)) not in visited
        ]
        for name in files:
            if name[0] != ".":
                yield (Path(folder) / name).relative_to(root).as_posix()


def _summary(found: list[str]) -> str:
    suffixes = Counter(PurePosixPath(name).suffix.lower() or "no ending" for name in found)
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(5))
    return f"{len(found)} other files ({kinds})" if found else "nothing at all"
