"""What an examination found, as text and as JSON."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One check: ok is None when it does not apply or could not be run; the detail then says why."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    """All findings of one network."""

    network: str
    parameters: int
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(f.ok is not False for f in self.findings)

    def __getitem__(self, name: str) -> Finding:
        """The finding of this name; raises KeyError."""
        return {f.name: f for f in self.findings}[name]

    def text(self, width: int = 110) -> str:
        """An aligned table, with the remedy under each finding that has one."""
        failed = sum(f.ok is False for f in self.findings)
        verdict = "nothing found" if failed == 0 else f"{failed} of {len(self.findings)} checks failed"
        lines = [f"{self.network} with {self.parameters:,} parameters: {verdict}"]
        for finding in self.findings:
            lines += _lines(finding, max(len(f.name) for f in self.findings), width)
        return "\n".join(lines)

    def json(self) -> str:
        """One JSON object: network, parameters, ok, findings."""
        found: dict[str, Any] = asdict(self)
        return json.dumps({"ok": self.ok, **found})

    def __str__(self) -> str:
        return self.text()


def _lines(finding: Finding, name_width: int, width: int) -> list[str]:
    mark = {True: "ok  ", False: "FAIL", None: "-   "}[finding.ok]
    head = f"  {mark}  {finding.name:<{name_width}}  "
    indent = " " * len(head)
    lines = [piece for line in finding.detail.splitlines() for piece in _wrapped(line, indent, width)]
    if finding.remedy:
        first, *code = finding.remedy.splitlines()
        lines += _wrapped(f"-> {first}", indent, width)
        # Code keeps its own line breaks.
        lines += [f"{indent}   {line}" for line in code]
    lines = lines or [indent]
    return [(head + lines[0][len(indent) :]).rstrip(), *lines[1:]]


def _wrapped(text: str, indent: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False)
