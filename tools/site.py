"""Pages of the documentation site that are made of what lies elsewhere: README, results, examples, docstrings.

A hook of MkDocs (mkdocs.yml). The files in docs/ link to their neighbours as they lie in the repository, so that they
read well there too; here those links are turned to the pages of the site.
"""

from __future__ import annotations

import importlib
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ROOMS = {
    "meanflow": "What most programs need: objectives, training, loading, sampling.",
    "meanflow.core": "Pure mathematics: path, times, derivative, guidance, weighting, sampling.",
    "meanflow.objectives": "What is minimised.",
    "meanflow.nets": "Networks.",
    "meanflow.data": "Sources, latents, loading.",
    "meanflow.training": "The loop and what it keeps.",
    "meanflow.evaluation": "Features, distances, protocols, pictures.",
    "meanflow.recipes": "Published and measured results as settings.",
    "meanflow.convert": "Checkpoints of other codes, both ways.",
    "meanflow.bench": "The price of a step, counted and timed.",
}
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for target, text in generated().items():
        files.append(File.generated(config, target, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links of a page in docs/ that leave docs/."""
    return relinked(markdown, "docs", page.file.src_uri) if not page.file.generated_by else markdown


def generated() -> dict[str, str]:
    """Name in the site -> Markdown."""
    pages = {site: relinked((ROOT / source).read_text("utf-8"), "", site) for source, site in pages_elsewhere().items()}
    for example in sorted((ROOT / "examples").glob("*.py")):
        pages[f"examples/{example.stem}.md"] = f"# {example.name}\n\n```python\n{example.read_text('utf-8')}```\n"
    return pages | {f"reference/{name}.md": reference(name, about) for name, about in ROOMS.items()}


def pages_elsewhere() -> dict[str, str]:
    """Markdown files outside docs/ and their names in the site."""
    known = {"README.md": "index.md", "benchmarks/RESULTS.md": "results.md"}
    known["src/meanflow/data/embedded/DIGITS-LICENSE.md"] = "digits-license.md"
    return known | {name: name.lower() for name in ("CHANGELOG.md", "CONTRIBUTING.md")}


def reference(name: str, about: str) -> str:
    """The public names of a module, each with its docstring."""
    names = [x for x in importlib.import_module(name).__all__ if not x.startswith("__")]
    modules = {f"meanflow.{x}" for x in names} & (set(ROOMS) | {"meanflow.doctor"})
    shown = [x for x in names if f"{name}.{x}" not in modules or x == "doctor"]
    return f"# {name}\n\n{about}\n\n" + "\n\n".join(f"::: {name}.{x}" for x in sorted(shown, key=str.lower)) + "\n"


def relinked(markdown: str, folder: str, site: str) -> str:
    """Links of a file that lies in `folder` of the repository, as the page `site` needs them."""

    def turned(match: re.Match[str]) -> str:
        target = _site_name(posixpath.normpath(posixpath.join(folder, match[2])))
        return match[1] + posixpath.relpath(target, posixpath.dirname(site) or ".") + match[3]

    return LINK.sub(turned, markdown)


def _site_name(path: str) -> str:
    """Where the site has what the repository has at `path`."""
    elsewhere = pages_elsewhere()
    if path in elsewhere:
        return elsewhere[path]
    if path.startswith("examples/"):
        return path.removesuffix(".py") + ".md"
    if path.startswith("src/meanflow/") and path.endswith(".py"):
        return f"reference/meanflow.{path.split('/')[2]}.md"
    return path.removeprefix("docs/")
