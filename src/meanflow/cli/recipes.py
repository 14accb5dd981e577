"""meanflow recipes."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from .._hint import did_you_mean
from ..core.guidance import Guidance
from ..recipes import FACTS, RECIPES, Recipe, cell, cells, changes, cost, expected, gpu_hours, leaves, option, recipe
from ..recipes.paper import Facts
from ..recipes.recipes import ABLATED
from .words import parse, settings_text

GPUS = 8  # of a usual machine, for the memory that each needs


@dataclass
class Show:
    """Print all about a recipe: source, expected FID, cost, what differs between paper and code, settings."""

    name: tyro.conf.Positional[str]
    """Recipe; `meanflow recipes` lists them."""
    variant: Annotated[Literal["paper", "code"] | None, tyro.conf.arg(name="as")] = None
    """For rows of the paper: as the paper says, or as the authors' code does."""
    ablation: str | None = None
    """A cell of the paper's ablations, for imagenet-b4, e.g. a:50; without one they are listed."""


def run(words: list[str]) -> int:
    """List the recipes, or show one."""
    if words in ([], ["list"]):
        width = max(map(len, RECIPES))
        for name in RECIPES:
            print(f"{name:<{width}}  {_title(name)}{_published(name)}")
        return 0
    if words[0] in ("-h", "--help"):
        print(
            "usage: meanflow recipes                   list the recipes\n"
            "       meanflow recipes show NAME         print all about one\n"
            "       meanflow recipes show NAME --as code | --ablation a:50\n"
            "       meanflow recipes show --help       explains these"
        )
        return 0
    if words[0] != "show":
        hint = did_you_mean(words[0], ["show"])
        raise ValueError(f"use `meanflow recipes` or `meanflow recipes show NAME`, got {words[0]!r}{hint}")
    s = parse(Show, words[1:], "recipes show")
    found = recipe(s.name, s.variant, s.ablation)
    print(f"{s.name}: {_title(s.name)}")
    if s.name in FACTS:
        print(f"{_facts(s, found)}\n\n{_differences(s.name, s.ablation)}\n")
        if s.name == ABLATED and s.ablation is None:
            print(f"{_cells()}\n")
        print("settings, as options of `meanflow train`")
    print(settings_text(found))
    return 0


def _title(name: str) -> str:
    return (RECIPES[name].__doc__ or "").splitlines()[0]


def _published(name: str) -> str:
    text = expected(name, None, None) if name in FACTS else ""
    return f" {text}." if text else ""


def _facts(s: Show, found: Recipe) -> str:
    """A row for each fact, with the cost as counted and estimated."""
    facts, training = FACTS[s.name], found.training
    variant = s.variant or facts.variants[0]
    published = expected(s.name, variant, s.ablation)
    rows = {
        "as": "paper: as the paper says" if variant == "paper" else f"code: as {facts.code} does",
        "ablation": _cell_title(s.ablation) if s.ablation else "",
        "source": facts.source,
        "data": f"{facts.data}: shape {facts.shape}, {facts.classes or 'no'} classes",
        "expected": f"{published} (published, 50,000 samples)" if published else "no FID is published",
        "training": f"{training.images:,} images ({training.images / facts.epoch:,.0f} epochs), "
        f"{training.steps:,} steps of {training.batch:,}",
        "guidance": _guidance(found.objective.guidance),
        **_cost_rows(found, facts),
    }
    return "\n".join(_wrapped(name, text) for name, text in rows.items() if text)


def _cost_rows(found: Recipe, facts: Facts) -> dict[str, str]:
    training, price = found.training, cost(found, facts.shape, facts.classes)
    estimate = gpu_hours(price, training, facts.authors_step)
    states, sample = price.states(training) / 2**30, price.activations / 2**30
    alone, shared = (price.memory(training, gpus) / 2**30 for gpus in (1, GPUS))
    return {
        "network": f"{price.parameters:,} parameters, {price.forward / 2e9:.1f} G multiply-adds a forward pass",
        "step": f"{price.ratio:.2f} times the FLOPs of a flow-matching step of this network",
        "cost": f"{price.flops(training):.2g} FLOPs; {estimate}, estimated for {estimate.assumption}",
        "memory": f"about {alone:,.0f} GiB on one GPU, {shared:,.0f} GiB on each of {GPUS}: {states:.1f} GiB for "
        f"weights, gradients, moments and averages, {sample:.2g} GiB a sample in {found.objective.precision}, "
        "not compiled",
    }


def _guidance(guidance: Guidance) -> str:
    if guidance.acts:
        return str(guidance)
    return f"none ({guidance.drop:.0%} of the labels dropped)" if guidance.drop > 0 else "none"


def _cell_title(name: str) -> str:
    found = cell(name)
    return f"{found.name}: {found.table.title}, {found.value.label}"


def _differences(name: str, ablation: str | None) -> str:
    """What the authors' code does otherwise than the paper says, setting by setting, and what no setting says."""
    facts = FACTS[name]
    lines = [f"paper and code ({facts.code})"]
    if len(facts.variants) > 1:
        paper, code = (recipe(name, variant, ablation) for variant in ("paper", "code"))
        before = leaves(paper)
        for key, value in changes(paper, code).items():
            setting, _, new = option(key, value).partition(" ")
            old = option(key, before[key]).partition(" ")[2]
            why = f"; {facts.why[key]}" if key in facts.why else ""
            lines.append(_wrapped(f"  {setting}", f"paper {old}, code {new}{why}", 33))
    return "\n".join([*lines, *(_wrapped("  -", note, 4) for note in facts.notes)])


def _cells() -> str:
    """Every cell of the ablation tables with the paper's FID and the options that it stands for."""
    width = max(map(len, cells()))
    lines = ["ablations: --ablation CELL, the FID of the paper, the options that it stands for"]
    for name, found in cells().items():
        options = " ".join(option(key, value) for key, value in found.changes.items())
        lines.append(f"  {name:<{width}} {found.value.fid:7.2f}  {options or 'the recipe as it is'}")
    return "\n".join(lines)


def _wrapped(name: str, text: str, indent: int = 11) -> str:
    return textwrap.fill(text, 112, initial_indent=f"{name:<{indent - 1}} ", subsequent_indent=" " * indent)
