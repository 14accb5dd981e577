"""Things in a user's file or module, by name, and what identifies them."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .._hint import did_you_mean
from .trouble import told


@dataclass(frozen=True)
class Code:
    """Something of the user's, and where it came from; target: as it was named, sha256: of its file."""

    target: str
    name: str
    path: Path
    sha256: str
    value: Any

    def record(self) -> dict[str, str]:
        """What a run folder says about it, JSON-able."""
        return {"name": self.name, "path": str(self.path), "sha256": self.sha256}


def named(target: str) -> Code:
    """What PATH.py:NAME or module:NAME means; the file is executed.

    Raises ValueError for a missing file, module or name, with the nearest one, and for errors in the file, with their
    place.
    """
    where, colon, name = target.rpartition(":")
    if not colon or not where or not name.isidentifier():
        raise ValueError(f"name your own code as PATH.py:NAME or module:NAME, e.g. net.py:build, got {target!r}")
    module = _file(Path(where)) if where.endswith(".py") else _module(where)
    if not hasattr(module, name):
        raise ValueError(f"{where} has no {name}{did_you_mean(name, _public(module))}")
    path = Path(module.__file__ or "")
    return Code(target, name, path, _sha256(path.read_bytes()), getattr(module, name))


def code_of(kind: type) -> dict[str, str] | None:
    """The record of a class that was given as an object, by its source alone; None where that cannot be found."""
    try:
        path, source = inspect.getsourcefile(kind), inspect.getsource(kind)
    except (OSError, TypeError):
        return None
    return None if path is None else {"name": kind.__name__, "path": path, "sha256": _sha256(source.encode())}


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        beside = path.parent.glob("*.py") if path.parent.is_dir() else []
        raise ValueError(f"there is no file {path}{did_you_mean(path.name, (p.name for p in beside))}")
    path = path.resolve()
    # The text is in the name: a file that names both network and data is executed once, a changed one again.
    name = f"_meanflow_own_{path.stem}_{_sha256(str(path).encode() + path.read_bytes())[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up; the folder is where `python PATH.py` would import from.
    sys.modules[name] = module
    _search(path.parent)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"{path} cannot be loaded: {told(error)}") from error
    return module


def _module(name: str) -> ModuleType:
    _search(Path.cwd())
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ValueError(f"{name} cannot be loaded: {told(error)}") from error
        raise ValueError(
            f"there is no module {name} in {Path.cwd()} or among the installed ones; a file is named with its ending, "
            f"as {name.rpartition('.')[2]}.py:NAME"
        ) from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{name} cannot be loaded: {told(error)}") from error
    if not getattr(module, "__file__", None):
        raise ValueError(f"{name} is not a file of Python code; name the module that holds your class")
    return module


def _search(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _public(module: ModuleType) -> list[str]:
    return [name for name in vars(module) if not name.startswith("_")]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
