"""onnxruntime-web for pages: fetched once through the user's npm registry, checked, packed and kept in a cache."""

from __future__ import annotations

import base64
import gzip
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..data.files import whole_folder
from ..evaluation.storage import cache_folder

VERSION = "1.30.0"
# Of the npm package of that version, as npm gives it.
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
TIMEOUT = 600  # seconds for 33 MB; our choice
RUNTIME = {
    "wasm": ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}
FILES = tuple(name for kind in RUNTIME.values() for name in kind)
NOTICE = (
    f"onnxruntime-web {VERSION}, Copyright (c) Microsoft Corporation, MIT licence, github.com/microsoft/onnxruntime\n"
)


def find_runtime(folder: Path | None = None) -> Path:
    """A folder with the six files of both runtimes, the binaries packed (NAME.packed, gzip).

    folder: where they, the npm package (its dist/ or node_modules) or its .tgz are; None takes the cache, and fills it
    through npm when it is empty. Raises FileNotFoundError naming what is missing, and RuntimeError when
    fetching fails or the package is not the one that was pinned.
    """
    cache = cache_folder() / f"onnxruntime-web-{VERSION}"
    if folder is not None:
        return _given(folder, cache)
    if not _whole(cache):
        with tempfile.TemporaryDirectory() as aside:
            _from_tarball(_fetch(Path(aside)), cache)
    return cache


def packed(name: str) -> str:
    """What a file of the runtime is called in a page."""
    return f"{name}.packed" if name.endswith(".wasm") else name


def _whole(folder: Path) -> bool:
    return all((folder / packed(name)).is_file() for name in FILES)


def _given(folder: Path, cache: Path) -> Path:
    if folder.is_file():
        _from_tarball(folder, cache)
        return cache
    if _whole(folder):
        return folder
    places = (folder, folder / "dist", folder / "onnxruntime-web" / "dist", folder / "package" / "dist")
    found = next((place for place in places if all((place / name).is_file() for name in FILES)), None)
    if found is None:
        raise FileNotFoundError(
            f"{folder} does not hold onnxruntime-web {VERSION}: wanted {', '.join(FILES)}. Fetch it where there is a "
            f"network with `npm pack onnxruntime-web@{VERSION}` and pass the .tgz, or its unpacked dist/"
        )
    _pack(lambda name: (found / name).read_bytes(), cache)
    return cache


def _fetch(aside: Path) -> Path:
    """The package's file, by npm, which knows its registry and proxies."""
    npm = shutil.which("npm")
    why = "there is no npm here"
    if npm is not None:
        try:
            done = subprocess.run(
                [npm, "pack", f"onnxruntime-web@{VERSION}", "--silent", "--pack-destination", str(aside)],
                capture_output=True, text=True, timeout=TIMEOUT, cwd=aside, check=False,
            )  # fmt: skip
            why = f"npm pack: {done.stderr.strip()[-300:] or done.returncode}"
        except subprocess.TimeoutExpired:
            why = f"npm pack did not end within {TIMEOUT} seconds"
        else:
            files = list(aside.glob("*.tgz"))
            if done.returncode == 0 and files:
                return files[0]
    raise RuntimeError(
        f"onnxruntime-web {VERSION} could not be fetched ({why}). Where there are npm and a network: `npm pack "
        f"onnxruntime-web@{VERSION}`; then pass the .tgz here with --runtime"
    )


def _from_tarball(file: Path, cache: Path) -> None:
    """Pack the files of an npm package that has the pinned checksum; nothing else of it is unpacked."""
    digest = base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()
    if digest != SHA512:
        raise RuntimeError(
            f"{file.name} is not onnxruntime-web {VERSION}: its sha512 is {digest[:16]}..., not the pinned one"
        )
    with tarfile.open(file) as archive:

        def read(name: str) -> bytes:
            member = archive.extractfile(f"package/dist/{name}")
            assert member is not None
            return member.read()

        _pack(read, cache)


def _pack(read: Callable[[str], bytes], cache: Path) -> None:
    """Fill the cache, whole or not at all."""
    with whole_folder(cache, replace=True, shared=True) as aside:
        for name in FILES:
            content = read(name)
            # mtime 0, so that equal pages are equal byte for byte
            content = gzip.compress(content, 9, mtime=0) if name.endswith(".wasm") else content
            (aside / packed(name)).write_bytes(content)
        (aside / "NOTICE.txt").write_text(NOTICE, encoding="utf-8")
