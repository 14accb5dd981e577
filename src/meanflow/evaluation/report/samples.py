"""Sections that show samples: by class, by number of calls from the same noise, and between two noises."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...core.conditions import map_cond
from .page import Section, columns, paragraph, strips
from .subject import LeftOut, Subject, conditions, draw, noise_of
from .tiles import sheet

PER_CLASS = 8  # all of these numbers: our choice, what a page and a phone hold
MOST_CLASSES = 10
TILES = 10
BETWEEN = 9
PATHS = 5


def by_class(subject: Subject) -> Section:
    """A column of one-call samples for each class, or a sheet of samples where there are no classes."""
    _need_images(subject)
    if subject.classes is None:
        return _without_classes(subject)
    shown = shown_classes(subject.classes)
    labels = torch.tensor([c for c in shown for _ in range(PER_CLASS)])
    x = draw(subject, noise_of(subject, len(labels)), labels, 1)
    named = [
        (subject.class_name(c), sheet(part, 1, f"{PER_CLASS} samples of class {subject.class_name(c)}"))
        for c, part in zip(shown, x.split(PER_CLASS), strict=True)
    ]
    some = f" {len(shown)} of {subject.classes} classes, evenly chosen." if len(shown) < subject.classes else ""
    body = paragraph("One network call each, consecutive seeds, nothing picked." + some, "note")
    return Section("samples", "Samples by class", body + columns(named, "One column a class"), {"classes": shown})


def by_calls(subject: Subject, steps: Sequence[int]) -> Section:
    """The same noise and conditions with each number of calls."""
    _need_images(subject)
    noise, cond = noise_of(subject, TILES), conditions(subject, TILES)
    drawn = {n: draw(subject, noise, cond, n) for n in sorted(set(steps))}
    most = max(drawn)
    rows = [
        (calls(n), sheet(x, TILES, f"{TILES} samples with {calls(n)} each, from the same noise in every row"))
        for n, x in drawn.items()
    ]
    away = {str(n): float((x - drawn[most]).square().mean().sqrt()) for n, x in drawn.items() if n != most}
    told = "; ".join(f"{calls(int(n))}: {d:.3f}" for n, d in away.items())
    note = f"Root-mean-square difference to {calls(most)}, on the scale [-1, 1]: {told}." if away else ""
    body = strips(rows, "Rows share their noise and classes; only the number of network calls differs") + (
        paragraph(note, "note") if note else ""
    )
    return Section("calls", "More calls from the same noise", body, {"rms_to_most_calls": away, "most_calls": most})


def interpolations(subject: Subject) -> Section:
    """Great circles between pairs of noises, one call for each point."""
    _need_images(subject)
    noise, cond = noise_of(subject, 2 * PATHS, first=1000), conditions(subject, PATHS)
    places = torch.linspace(0, 1, BETWEEN)
    path = torch.stack([slerp(noise[:PATHS], noise[PATHS:], float(s)) for s in places], dim=1).flatten(0, 1)
    rows_cond = map_cond(lambda c: c.repeat_interleave(BETWEEN, 0), cond)
    x = draw(subject, path, rows_cond, 1).unflatten(0, (PATHS, BETWEEN))
    rows = [
        (_path_name(subject, i), sheet(x[i], BETWEEN, f"{BETWEEN} samples on the way from one noise to another"))
        for i in range(PATHS)
    ]
    body = strips(rows, "From one noise to another along the great circle between them, one network call each")
    return Section("interpolations", "Interpolations", body, {"paths": PATHS, "points": BETWEEN})


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Points on the great circles from noises a to b, both [B, *shape], at this share of the way.

    Between Gaussian noises a straight line passes through points that are too short to be noise.
    Source: Shoemake 1985; for generative models arXiv:1609.04468.
    """
    x, y = a.flatten(1).double(), b.flatten(1).double()
    cosine = (x * y).sum(1, keepdim=True) / (x.norm(dim=1, keepdim=True) * y.norm(dim=1, keepdim=True))
    w = cosine.clamp(-1, 1).arccos()
    # sin((1 - s) w) / sin(w) a + sin(s w) / sin(w) b
    mixed = torch.sin((1 - share) * w) / torch.sin(w) * x + torch.sin(share * w) / torch.sin(w) * y
    parallel = torch.sin(w).abs() < 1e-6
    return torch.where(parallel, torch.lerp(x, y, share), mixed).to(a.dtype).reshape(a.shape)


def calls(n: int) -> str:
    """ "1 call", "4 calls"."""
    return f"{n} call{'s' * (n != 1)}"


def shown_classes(classes: int) -> list[int]:
    """All classes, or as many as a page holds, evenly chosen."""
    if classes <= MOST_CLASSES:
        return list(range(classes))
    return [round(i * (classes - 1) / (MOST_CLASSES - 1)) for i in range(MOST_CLASSES)]


def _without_classes(subject: Subject) -> Section:
    count = 6 * TILES
    x = draw(subject, noise_of(subject, count), conditions(subject, count), 1)
    rows = [("", sheet(part, TILES, f"{TILES} samples, one network call each")) for part in x.split(TILES)]
    body = paragraph("One network call each, consecutive seeds, nothing picked.", "note")
    return Section("samples", "Samples", body + strips(rows, "This run knows no classes"), {"classes": None})


def _path_name(subject: Subject, i: int) -> str:
    return f"class {subject.class_name(i % subject.classes)}" if subject.classes else f"pair {i + 1}"


def _need_images(subject: Subject) -> None:
    if not subject.draws_images:
        raise LeftOut(f"samples of shape {list(subject.shape)} are no images with 1 or 3 channels")
