"""README and docs/: their Python runs, their commands are commands, their links lead somewhere, the site builds."""

import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import tyro

import docs_world
from meanflow.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(page, i, text) for page in PAGES for i, text in enumerate(BLOCK.findall(page.read_text("utf-8")))]
ELSEWHERE = ("own-code.md",)  # whose blocks are files of their own: test_own_docs.py
PYTHON_PAGES = sorted({page for page, _, _ in BLOCKS if page.name not in ELSEWHERE})
SHORT = 1280  # images that a training in a page is cut to


def commands(page: Path) -> list[str]:
    """Every `meanflow ...` of a page that stands as a command, also the ones under torchrun."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if re.match(r" {4}(meanflow|torchrun) (?!error|warning)", line)]
    parts = [part for line in lines for part in re.sub(r"\s#.*", "", line).split("&&")]
    return [re.sub(r"^.*(meanflow|-m meanflow\.cli) (?=[a-z])", "meanflow ", part).split("|")[0] for part in parts]


COMMAND_LINES = [(page.name, line) for page in PAGES for line in commands(page)]


class Parsed(Exception):
    """The words were understood; nothing else is to happen."""


def understood(line: str, patch: pytest.MonkeyPatch) -> bool:
    """Whether the parser of the command takes the line; it is not run."""
    real = tyro.cli

    def only_parse(*args: object, **kwargs: object) -> None:
        real(*args, **kwargs)  # type: ignore[call-overload]
        raise Parsed

    words = shlex.split(line)[1:]
    if words[0] not in COMMANDS:
        return False
    if words == ["recipes"] or words[1:] == ["--help"]:
        return True
    patch.setattr(tyro, "cli", only_parse)
    try:
        import_module(f"meanflow.cli.{words[0]}").run(words[1:])
    except Parsed:
        return True
    except (SystemExit, ValueError, FileNotFoundError):
        return False
    return False


@pytest.mark.parametrize(("page", "line"), COMMAND_LINES)
def test_commands_are_understood(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert understood(line, monkeypatch)


@pytest.mark.parametrize(
    "line", ["meanflow trian digits", "meanflow sample runs/x --stepz 2", "meanflow train digits --images few"]
)
def test_a_wrong_command_would_be_noticed(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not understood(line, monkeypatch)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return docs_world.build(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=[page.name for page in PYTHON_PAGES])
def test_python_of_the_pages_runs(page: Path, world: Path, tmp_path: Path) -> None:
    """All blocks of a page in one process, one after the other; trainings are cut short."""
    blocks = [re.sub(r"images=[\d_]+", f"images={SHORT}", text) for where, _, text in BLOCKS if where == page]
    script = tmp_path / "blocks.py"
    # A name of its own for each block, so that a failure says which one it was.
    named = (f"exec(compile({text!r}, 'block {i} of {page.name}', 'exec'))" for i, text in enumerate(blocks, 1))
    script.write_text("\n".join(named), encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, script], cwd=world, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_in_the_site() -> None:
    listed = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f" {page.name}\n" in listed, f"mkdocs.yml does not list docs/{page.name}"


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason="MkDocs is not installed (extra docs)")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "reference" / "meanflow.core" / "index.html").read_text("utf-8")
    assert "noise_from_seeds" in page and "arXiv:2505.13447, eq. 12" in page
    assert "googleapis" not in page, "the site must not call other hosts"
