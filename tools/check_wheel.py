"""Build wheel and sdist, install the wheel where the sources are not, and run it as a user would.

    python tools/check_wheel.py             fresh environments, without extras and with every one (minutes)
    python tools/check_wheel.py --linked    dependencies are taken from the environment of this Python (seconds)

Stops at the first command that fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHORT = ("train", "digits", "--images", "640", "--batch", "64", "--device", "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--linked", action="store_true")
    linked = parser.parse_args().linked
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build(folder / "dist", isolated=not linked)
        if linked:
            use(folder / "linked", wheel, None)
            return
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
        use(folder / "plain", wheel, [])
        use(folder / "extras", wheel, [extra for extra in extras if extra != "dev"])


def build(folder: Path, isolated: bool) -> Path:
    """Wheel and sdist, the wheel made from the sdist; both must hold what they need and nothing else."""
    call(sys.executable, "-m", "build", *([] if isolated else ["--no-isolation"]), "--outdir", folder, ROOT, cwd=ROOT)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    packed = set(zipfile.ZipFile(wheel).namelist())
    # Everything that the package has in the repository, Python or not, is what the wheel must have.
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "src/meanflow"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    missing = {name.removeprefix("src/") for name in tracked} - packed
    strange = {name for name in packed if not name.startswith(("meanflow/", "meanflow-"))}
    if missing or strange:
        sys.exit(f"the wheel lacks {sorted(missing)} and should not hold {sorted(strange)}")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    if not {"README.md", "LICENSE", "pyproject.toml"} <= names:
        sys.exit(f"the sdist lacks README, LICENSE or pyproject.toml: {sorted(names)[:20]}")
    return wheel


def use(folder: Path, wheel: Path, extras: list[str] | None) -> None:
    """Install the wheel into an environment in `folder` and run its commands beside it; extras=None links the rest."""
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    wanted = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
    if extras is None:
        call(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
        own = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        Path(own, "linked.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    else:
        call(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wanted, cwd=folder)
    where = f"import meanflow, sys; sys.exit(not meanflow.__file__.startswith({str(folder)!r}))"
    call(python, "-c", where, cwd=folder)
    command = folder / "env" / "bin" / "meanflow"
    call(command, *SHORT, cwd=folder)
    call(command, "sample", "runs/digits", "--out", "samples.png", cwd=folder)
    call(command, "evaluate", "runs/digits", "--samples", "200", "--steps", "1", cwd=folder)
    print(f"{wheel.name} works, {'linked' if extras is None else 'extras: ' + (', '.join(extras) or 'none')}")


def call(*words: object, cwd: Path) -> None:
    """Run a command without a way to the sources; its output is shown when it fails."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([str(w) for w in words], cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))} failed with {done.returncode}:\n{done.stdout}\n{done.stderr}")


if __name__ == "__main__":
    main()
