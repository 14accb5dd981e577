"""Runs side by side: differences, their intervals, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch

from meanflow.cli import main
from meanflow.evaluation import Judge
from meanflow.evaluation.metrics import HIGHER_IS_BETTER, METRICS
from meanflow.evaluation.report import Row, compare
from meanflow.evaluation.report.compare import comparison_text, difference
from meanflow.evaluation.report.names import MEANINGS
from meanflow.evaluation.report.tables import with_intervals

NET = ["--net.width", "32", "--net.depth", "1", "--net.heads", "4", "--net.patch", "4", "--loggers", "csv"]
SHORT = ["--images", "256", "--batch", "64"]
QUICK = ["--samples", "200", "--resamples", "20", "--steps", "1"]


@pytest.fixture(scope="module")
def judge():
    return Judge("digits")


def judged(judge, name, x, labels, seed=7):
    result = replace(judge.images(x, labels, from_files=False), seed=seed, steps=1)
    return Row(name, result)


@pytest.fixture(scope="module")
def images(judge):
    from meanflow.data import digits

    return digits("train").batch(range(400))


def test_a_run_against_itself_differs_by_nothing(judge, images):
    a, b = judged(judge, "a", *images), judged(judge, "b", *images)
    for metric in with_intervals(a.result):
        d = difference(a, b, metric, 20)
        assert d.paired and d.value == 0 and d.low == d.high == 0 and not d.clear and d.better is None


def test_pairing_cancels_what_both_share(judge, images):
    """A little noise on the same images: paired, the difference is clear; drawn apart, its interval is wider."""
    x, labels = images
    noisy = x + 0.15 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    a, b = judged(judge, "clean", x, labels), judged(judge, "noisy", noisy, labels)
    paired = difference(a, b, "frechet", 50)
    apart = difference(a, judged(judge, "noisy", noisy, labels, seed=8), "frechet", 50)
    assert paired.paired and not apart.paired
    assert paired.high - paired.low < 0.7 * (apart.high - apart.low)
    assert paired.clear and paired.value > 0 and paired.better == "clean"
    assert paired.low < paired.value < paired.high


def test_more_is_better_where_more_is_better(judge, images):
    x, labels = images
    wrong = labels.clone()
    wrong[:200] = (wrong[:200] + 1) % 10
    d = difference(judged(judge, "right", x, labels), judged(judge, "wrong", x, wrong), "agreement", 50)
    assert d.clear and d.better == "right" and d.value == pytest.approx(-0.5, abs=0.02)


def test_other_protocols_seeds_and_numbers_are_refused(judge, images):
    x, labels = images
    a = judged(judge, "a", x, labels)
    other = replace(a.result, protocol=replace(a.result.protocol, resize="bicubic-299"))
    with pytest.raises(ValueError, match="cannot be compared, their protocols differ in resize: none against bicubic"):
        compare([a, Row("b", other)])
    with pytest.raises(ValueError, match="first seed: 7 against 8"):
        compare([a, judged(judge, "b", x, labels, seed=8)])
    with pytest.raises(ValueError, match="samples drawn: 400 against 300"):
        compare([a, judged(judge, "b", x[:300], labels[:300])])
    with pytest.raises(ValueError, match="at least two runs, got a"):
        compare([a])


def test_rows_meet_those_with_as_many_calls_and_the_same_weights(judge, images):
    a = judged(judge, "a", *images)
    rows = [
        Row(name, replace(a.result, steps=steps, weights=weights))
        for name in ("a", "b")
        for weights in ("EMA 0.9", "raw weights")
        for steps in (1, 2)
    ]
    found = compare(rows, resamples=2)
    per_metric = len(with_intervals(a.result))
    assert len(found.differences) == 4 * per_metric and "2 draws over samples" in comparison_text(found)


def test_the_command_writes_a_page_and_one_json_object(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("one", "0"), ("two", "1")):
        assert main(["train", "digits", "--out", name, "--seed", seed, *NET, *SHORT]) == 0
    capsys.readouterr()
    assert main(["compare", "one", "two", *QUICK]) == 0
    text = capsys.readouterr().out
    assert "two − one" in text and "protocol digits v1" in text and "paired" in text
    found = json.loads((tmp_path / "one" / "comparison" / "comparison.json").read_text())
    first = found["differences"][0]
    assert first["value"] == pytest.approx(found["rows"][1]["frechet"] - found["rows"][0]["frechet"])
    assert first["low"] < first["value"] < first["high"]
    page = (tmp_path / "one" / "comparison" / "index.html").read_text()
    assert "from the same noise as the other runs" in page and "<script" not in page
    assert main(["compare", "one", "two", "--json", *QUICK]) == 0
    assert json.loads(capsys.readouterr().out) ["differences"] == [
        *found["differences"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "at least two runs"),
        (["a", "b", "--protocol", "none"], "nothing to compare"),
        (["a", "a", "--protocol", "digits"], "named twice"),
        (["a", "b"], "no run"),
    ],
)
def test_wrong_use_is_told_in_a_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *words]) == 2
    assert message in capsys.readouterr().err


def test_every_metric_has_words_and_the_right_direction():
    """The tables' arrows agree with what the metrics themselves say."""
    for name in METRICS:
        known = MEANINGS[name]
        assert known.words and (known.better == "higher") == (name in HIGHER_IS_BETTER)
