"""The examples run as they stand."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHORT = ROOT / "examples" / "meanflow_in_60_lines.py"
OWN = ROOT / "examples" / "own_tensors.py"
PNG = b"\x89PNG\r\n\x1a\n"


def run(words: list[object], folder: Path) -> str:
    """Standard output of a Python process in `folder`; fails with its errors."""
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": str(folder / "mpl")}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_png(file: Path) -> None:
    data = file.read_bytes()
    assert data.startswith(PNG)
    assert len(data) > 5_000


def imported(file: Path) -> set[str]:
    """Top-level names of everything that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add((node.module or "").split(".")[0])
    return names


def test_60_lines_stand_alone() -> None:
    lines = [line for line in SHORT.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= 60
    assert imported(SHORT) <= {"math", "sys", "torch", "matplotlib"}


def test_60_lines_run(tmp_path: Path) -> None:
    said = run([SHORT, "figure.png", 5], tmp_path)
    assert said == "5 steps; figure in figure.png\n"
    check_png(tmp_path / "figure.png")


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and output of own_tensors.py after a short run."""
    folder = tmp_path_factory.mktemp("own")
    return folder, run([OWN, "--out", "ring", "--images", 25_600], folder)


COVERAGE = r"^{}: (\d) of 8 modes, (\d+\.\d)% of the points within 3 std of one, std (\d\.\d{{3}})$"


def test_own_tensors_prints_coverage(ring: tuple[Path, str]) -> None:
    found = {}
    for name in ("data", "one call", "two calls"):
        match = re.search(COVERAGE.format(name), ring[1], re.MULTILINE)
        assert match, ring[1]
        found[name] = int(match[1]), float(match[2]), float(match[3])
    # 3 standard deviations of a two-dimensional Gaussian hold 1 - exp(-9 / 2) of it.
    assert found["data"][0] == 8
    assert found["data"][1] == pytest.approx(98.9, abs=0.6)
    assert found["data"][2] == pytest.approx(0.1, abs=0.005)
    assert found["two calls"][1] > found["one call"][1]


def test_own_tensors_draws(ring: tuple[Path, str]) -> None:
    check_png(ring[0] / "ring" / "ring.png")


def test_own_tensors_repeated_draws_again_without_training(ring: tuple[Path, str]) -> None:
    folder, said = ring
    (folder / "ring" / "ring.png").unlink()
    assert run([OWN, "--out", "ring", "--images", 25_600], folder) == said
    check_png(folder / "ring" / "ring.png")
