"""Section on memorisation: the samples that lie nearest to training images, against what is usual for fresh data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor

from ...data import Dataset
from ...data.dataset import draw as drawn_from
from .charts import Chart, Series, line_chart
from .page import Section, figure, image, paragraph, scrolling
from .subject import LeftOut, Subject, conditions, draw, noise_of
from .tiles import sheet

SAMPLES = 500  # looked at; all of these numbers are our choice
SHOWN = 6
NEAREST = 3
FRESH = 1000  # data that tell what is usual
MOST_VALUES = 200_000_000  # numbers of training samples searched: all of MNIST and CIFAR-10, 1,000 images of 256x256
CHUNK = 2048


@dataclass(frozen=True)
class Usual:
    """Distances [N] of data that were never copied to their nearest training sample, and what these data are."""

    distances: Tensor
    words: str


def neighbours(subject: Subject) -> Section:
    """The samples nearest to the training data beside their neighbours, and the distances of all against the usual."""
    if subject.train is None:
        raise LeftOut(subject.why_no_data)
    if not subject.draws_images:
        raise LeftOut(f"samples of shape {list(subject.shape)} are no images with 1 or 3 channels")
    samples = _samples(subject)
    distances, places = nearest_rows(samples, subject.train, NEAREST)
    usual = usual_distances(subject)
    order = distances[:, 0].argsort()[:SHOWN]
    table = _table(subject, samples[order], distances[order], places[order], usual)
    searched = len(rows_searched(subject.train))
    share = float((distances[:, 0] < torch.quantile(usual.distances, 0.05)).double().mean())
    verdict = (
        f"Of {len(samples)} samples, {share:.1%} lie nearer to one of {searched:,} training images than the nearest "
        f"5 % of {usual.words}. {_judged(share, len(samples), len(usual.distances))}"
    )
    body = paragraph(verdict) + f'<div class="pair">{table}{_chart(distances[:, 0], usual)}</div>'
    data = {
        "samples": len(samples), "training_images": searched, "usual": usual.words,
        "median": float(distances[:, 0].median()), "median_usual": float(usual.distances.median()),
        "share_nearer_than_usual_5_percent": share,
    }  # fmt: skip
    return Section("neighbours", "Nearest training images", body, data)


def nearest_rows(x: Tensor, data: Dataset, count: int, skip: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Euclidean distances and positions [N, count] of the rows of `data` nearest to x [N, *shape].

    skip: a position [N] of the data for each row of x that does not count, such as its own.
    """
    flat = x.flatten(1)
    best = torch.full((len(x), count), torch.inf)
    where = torch.zeros((len(x), count), dtype=torch.long)
    for rows in rows_searched(data).split(CHUNK):
        found = torch.cdist(flat, data.batch(rows)[0].flatten(1).float())
        if skip is not None:
            found[skip[:, None] == rows[None]] = torch.inf
        both = torch.cat([best, found], 1)
        best, order = both.topk(count, largest=False)
        where = torch.cat([where, rows.expand(len(x), -1)], 1).gather(1, order)
    return best, where


def rows_searched(data: Dataset) -> Tensor:
    """Positions of the training samples that are searched: all, or as many as MOST_VALUES allows, evenly chosen."""
    return _spread(torch.arange(len(data)), max(MOST_VALUES // math.prod(data.shape), 1))


def _spread(rows: Tensor, most: int) -> Tensor:
    return rows if len(rows) <= most else rows[torch.linspace(0, len(rows) - 1, most, dtype=torch.float64).long()]


def usual_distances(subject: Subject) -> Usual:
    """Of held-out data; without any, of training samples to the nearest other one."""
    assert subject.train is not None
    if subject.held_out is not None:
        rows = range(min(FRESH, len(subject.held_out)))
        x = drawn_from(subject.held_out, rows, 0)[0]
        return Usual(nearest_rows(x, subject.train, 1)[0][:, 0], f"{len(rows)} held-out images")
    own = _spread(rows_searched(subject.train), FRESH)
    x = subject.train.batch(own)[0]
    words = f"{len(own)} training images (each to the nearest other one, for nothing is held out)"
    return Usual(nearest_rows(x, subject.train, 1, skip=own)[0][:, 0], words)


def _samples(subject: Subject) -> Tensor:
    """One-call samples as the network makes them, not decoded: distances are taken where it was trained."""
    bare = Subject(subject.name, subject.net, {}, train=subject.train)
    return draw(bare, noise_of(subject, SAMPLES, first=10_000), conditions(subject, SAMPLES), 1)


def _judged(share: float, samples: int, fresh: int) -> str:
    """What a share means, when fresh data have 5 % up to the chance of two finite sets."""
    # Two standard deviations of the difference of two binomial shares.
    chance = 2 * math.sqrt(0.05 * 0.95 * (1 / samples + 1 / fresh))
    if share <= 0.05 + chance:
        return "That is no more than fresh data would have."
    return f"Fresh data would have 5 %: {share / 0.05:.1f} times as many are near as should be, so look at them below."


def _table(subject: Subject, x: Tensor, distances: Tensor, places: Tensor, usual: Usual) -> str:
    assert subject.train is not None
    near = subject.train.batch(places.flatten())[0].unflatten(0, places.shape)
    shown = torch.cat([x[:, None], near], 1)
    if subject.decode is not None:
        device = next(subject.net.parameters()).device
        shown = subject.decode(shown.flatten(0, 1).to(device)).float().cpu().unflatten(0, shown.shape[:2])
    lines = []
    for i, row in enumerate(shown):
        share = float((usual.distances <= distances[i, 0]).double().mean())
        cells = "".join(f"<td>{image(sheet(row[j : j + 1], 1, _alt(i, j)))}</td>" for j in range(NEAREST + 1))
        lines.append(f'<tr>{cells}<td class="n">{distances[i, 0]:.3f}</td><td class="n">{share:.1%}</td></tr>')
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in ("Sample", "Nearest", "2nd", "3rd"))
    table = (
        '<table class="numbers near"><caption>The samples nearest to training images; the last column is the share of '
        f"{escape(usual.words)} that lie nearer than this</caption><thead><tr>{head}"
        '<th scope="col" class="n">Distance</th><th scope="col" class="n">Usual</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )
    return scrolling(table, "Samples and their nearest training images")


def _alt(row: int, place: int) -> str:
    return f"sample {row + 1}" if place == 0 else f"training image number {place} by distance to sample {row + 1}"


def _chart(distances: Tensor, usual: Usual) -> str:
    series = [_cumulative("samples", distances), _cumulative("held-out or other images", usual.distances)]
    drawn = line_chart(Chart("Distances to the nearest training image", "distance", "share of images", series))
    return figure(
        drawn, f"Share of images whose nearest training image lies within a distance: samples, {usual.words}."
    )


def _cumulative(name: str, distances: Tensor, points: int = 60) -> Series:
    shares = torch.linspace(0, 1, points, dtype=torch.float64)
    return Series(name, torch.quantile(distances.double(), shares).tolist(), shares.tolist())
