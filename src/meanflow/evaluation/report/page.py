"""The page itself: one file, no script, nothing fetched, allowed by a strict content security policy."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from typing import Any

from .tiles import Picture


@dataclass(frozen=True)
class Section:
    """A part of the report: its words and pictures, and the same as data for report.json."""

    key: str
    title: str
    body: str
    data: Any = None


@dataclass(frozen=True)
class Page:
    """What stands on a page, in order."""

    kicker: str
    title: str
    lead: str
    under: str
    sections: Sequence[Section]
    left_out: dict[str, str] = field(default_factory=dict)
    foot: str = ""


def html(page: Page) -> str:
    """The whole file."""
    style = styles("colours", "style", "chart")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    links = "".join(f'<li><a href="#{s.key}">{escape(s.title)}</a></li>' for s in page.sections)
    parts = [
        f'<section id="{s.key}" aria-labelledby="{s.key}-title"><h2 id="{s.key}-title">{escape(s.title)}</h2>'
        f"{s.body}</section>"
        for s in page.sections
    ]
    under = paragraph(page.under, "under") if page.under else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        # Without an icon of its own a browser asks the server for one.
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(page.title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<header><p class="kicker">{escape(page.kicker)}</p><h1>{escape(page.title)}</h1>'
        f'<p class="lead">{escape(page.lead)}</p>{under}'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
        f"<main>\n{chr(10).join(parts)}\n{_left_out(page.left_out)}</main>\n"
        f"<footer>{escape(page.foot)}</footer>\n</body>\n</html>\n"
    )


def styles(*names: str) -> str:
    """Style sheets of these names, one after the other."""
    folder = resources.files(__package__)
    return "".join(folder.joinpath(f"{name}.css").read_text(encoding="utf-8") for name in names)


def standalone(svg: str) -> str:
    """A chart as a file of its own, light or dark as its surroundings ask for."""
    style = styles("colours", "chart") + ".paper { fill: var(--paper); } text { font-family: system-ui, sans-serif; }"
    return svg.replace("<title>", f'<style>{style}</style><rect class="paper" width="100%" height="100%"/><title>', 1)


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{escape(text)}</p>"


def image(picture: Picture) -> str:
    """An image with its natural size, so that nothing moves while the page loads."""
    smooth = "" if "image/png" in picture.uri[:16] else ' class="smooth"'
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img{smooth} src="{picture.uri}" {size} alt="{escape(picture.alt)}">'


def figure(inner: str, caption: str) -> str:
    """Something to look at with its caption."""
    return f"<figure>{inner}<figcaption>{escape(caption)}</figcaption></figure>"


def facts(rows: dict[str, str]) -> str:
    """Names and values as a two-column table."""
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows.items()
    )
    return f'<table class="facts"><tbody>{lines}</tbody></table>'


def strips(rows: Sequence[tuple[str, Picture]], caption: str) -> str:
    """A row of pictures for each name, all of one scale."""
    lines = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{image(p)}</td></tr>' for name, p in rows)
    return (
        f'<table class="strips rows"><caption>{escape(caption)}</caption><colgroup><col class="name"><col></colgroup>'
        f"<tbody>{lines}</tbody></table>"
    )


def columns(named: Sequence[tuple[str, Picture]], caption: str) -> str:
    """A column of pictures under each name."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name, _ in named)
    cells = "".join(f"<td>{image(p)}</td>" for _, p in named)
    return (
        f'<table class="strips columns"><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody><tr>{cells}</tr></tbody></table>"
    )


def scrolling(inner: str, name: str) -> str:
    """Something that may be wider than a phone; it scrolls by itself and by the keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}">{inner}</div>'


def _left_out(reasons: dict[str, str]) -> str:
    if not reasons:
        return ""
    return (
        '<section id="left-out" aria-labelledby="left-out-title"><h2 id="left-out-title">Left out</h2>'
        f"{facts(reasons)}</section>\n"
    )
