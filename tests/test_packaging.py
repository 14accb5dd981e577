"""What is built is complete and runs without the sources; it says one version."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import meanflow

ROOT = Path(__file__).parents[1]


def test_wheel_runs_without_the_sources() -> None:
    pytest.importorskip("build", reason="the library build is not installed (extra dev)")
    done = subprocess.run(
        [sys.executable, "tools/check_wheel.py", "--linked"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("works, linked\n")


def test_a_file_left_out_of_the_wheel_is_noticed(tmp_path: Path) -> None:
    """The mutant: a package with a data file that no pattern of package-data takes."""
    (tmp_path / "src" / "meanflow").mkdir(parents=True)
    for name in ("README.md", "LICENSE", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "check_wheel.py").write_bytes((ROOT / "tools" / "check_wheel.py").read_bytes())
    (tmp_path / "src" / "meanflow" / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "src" / "meanflow" / "forgotten.table").write_text("", encoding="utf-8")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    done = subprocess.run(
        [sys.executable, "tools/check_wheel.py", "--linked"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert "lacks ['meanflow/forgotten.table']" in done.stderr


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert meanflow.__version__ == project["version"]
    assert f"\n## {project['version']}" in changes
