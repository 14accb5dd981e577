"""Sets larger than the memory that a process may use: an epoch of each format under a limit set by the kernel."""

import io
import os
import subprocess
import sys
from pathlib import Path

import made
import numpy as np
import pytest
from PIL import Image

IMAGES = 128
SIDE = 600  # 1.08 MB an image as BMP, 138 MB the set
LIMIT = 64 * 2**20  # what may be reserved beyond what the process has after its first batch


def bmp(number):
    file = io.BytesIO()
    pixels = np.frombuffer(np.random.default_rng(number).bytes(SIDE * SIDE * 3), np.uint8).reshape(SIDE, SIDE, 3)
    Image.fromarray(pixels).save(file, "bmp")
    return file.getvalue()


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """One set of 138 MB as zip, tar, parquet and npz, and a small one to begin with."""
    folder = tmp_path_factory.mktemp("large")
    members = {f"{number % 2}/{number:04}.bmp": bmp(number) for number in range(IMAGES)}
    made.write_zip(folder / "set.zip", members, 0)
    made.write_tar(folder / "set.tar", members)
    np.savez(folder / "set.npz", images=np.zeros((IMAGES, 3, SIDE, SIDE), np.uint8))
    try:
        import pyarrow as pa

        rows = pa.table({"image": [{"bytes": content, "path": name} for name, content in members.items()]})
        made.write_parquet(folder / "set.parquet", rows, rows=4)
    except ImportError:
        pass
    made.write_zip(folder / "small.zip", dict(list(members.items())[:8]), 0)
    return folder


# VmData is what RLIMIT_DATA counts: private writable memory, without files that are mapped for reading
CODE = """
import resource, sys
import torch
from meanflow.data import arrow_images, open_data, order
sys.modules["meanflow.data.order"].WINDOW_BYTES = 16 * 2**20
arrow_images.CACHE_BYTES = 20 * 2**20

def reserved():
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))

def epoch(path):
    size = {} if path.endswith("npz") else {"size": 64}
    data = open_data(path, **size)
    rows = data.order(seed=0, start=0, count=len(data)) if hasattr(data, "order") else torch.arange(len(data))
    for part in rows.split(8):
        data.batch(part)
    return len(data)

def everything(path):
    return [open(path, "rb").read()]

open_data("small.zip", size=64).batch(range(8))
warm = "set.parquet" in sys.argv and __import__("pyarrow.parquet")
torch.empty(8, 3, 600, 600).mul_(2)
resource.setrlimit(resource.RLIMIT_DATA, (reserved() + int(sys.argv[1]), resource.RLIM_INFINITY))
for read in (epoch, everything):
    for path in sys.argv[2:]:
        try:
            print(path, read(path))
        except MemoryError:
            print(path, "out of memory")
"""


def run(folder, paths):
    # what is freed goes back to the kernel at once, so that the limit sees what is held and not what fell into pieces
    allocator = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "1000000", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **allocator}
    words = [sys.executable, "-c", CODE, str(LIMIT), *paths]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=environment, timeout=300)
    return done.stdout.splitlines(), done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the limit is one of Linux")
def test_an_epoch_of_a_set_larger_than_the_limit(large):
    paths = sorted(path.name for path in large.glob("set.*"))
    assert all((large / path).stat().st_size > 2 * LIMIT for path in paths)
    found, errors = run(large, paths)
    assert found[: len(paths)] == [f"{path} {IMAGES}" for path in paths], errors
    # the limit holds: who reads a whole set comes to grief
    assert found[len(paths) :] == [f"{path} out of memory" for path in paths], errors
