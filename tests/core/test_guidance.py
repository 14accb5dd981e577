"""Guidance: the two notations, the formula, dropped rows, conditions of any kind."""

import pytest
import torch

from meanflow import Guidance
from meanflow.core import null_like
from meanflow.core.guidance import draw_dropped


@pytest.mark.parametrize(("w", "k", "scale"), [(1.0, 0.5, 2.0), (0.2, 0.92, 2.5), (3.0, 0.0, 3.0)])
def test_effective_scale_is_w_over_one_minus_k(w, k, scale):
    g = Guidance.from_paper(w, k)
    assert g.scale == pytest.approx(scale) and g.w == pytest.approx(w) and g.k == k
    assert f"effective scale {scale:g}" in str(g)


def test_velocity_is_the_papers_formula_inside_the_interval_only():
    g = Guidance.from_paper(0.5, 0.3, interval=(0.25, 0.75))
    v, c, n = torch.randn(3, 4, 2, dtype=torch.float64)
    out = g.velocity(v, torch.tensor([0.1, 0.25, 0.75, 0.9]).double(), c, n)
    inside = 0.5 * v + 0.3 * c + 0.2 * n
    assert torch.equal(out[[0, 3]], v[[0, 3]])
    assert torch.allclose(out[1:3], inside[1:3], atol=1e-14)


def test_calls_that_have_no_weight_are_not_needed():
    assert (Guidance(1.0).needs_cond, Guidance(1.0).needs_null) == (False, False)
    assert (Guidance(2.0).needs_cond, Guidance(2.0).needs_null) == (False, True)
    assert (Guidance(2.0, 0.5).needs_cond, Guidance(2.0, 0.5).needs_null) == (True, True)


def test_first_drops_a_prefix_and_coin_any_rows():
    g = torch.Generator().manual_seed(0)
    first, leading = draw_dropped(1000, 0.1, "first", g)
    n = int(first.sum())
    assert leading == n
    assert 60 < n < 140 and bool(first[:n].all())
    coin, _ = draw_dropped(1000, 0.1, "coin", g)
    assert 60 < int(coin.sum()) < 140 and int(coin.nonzero().max()) > 500


def test_none_is_explicit_for_every_kind_of_condition():
    labels, vectors = torch.arange(3), torch.randn(3, 4)
    assert null_like(labels, 10).tolist() == [10, 10, 10]
    assert torch.equal(null_like(vectors, torch.zeros(4)), torch.zeros(3, 4))
    tree = {"label": labels, "text": {"embedding": vectors}}
    nothing = null_like(tree, {"label": 7, "text": {"embedding": lambda c: -c}})
    assert nothing["label"].tolist() == [7] * 3 and torch.equal(nothing["text"]["embedding"], -vectors)
    assert null_like(None, 3) is None


@pytest.mark.parametrize(
    ("cond", "null", "message"),
    [
        (torch.arange(3), None, "after the last class"),
        ({"a": torch.arange(3)}, 3, "dict with the same keys"),
        ({"a": torch.arange(3)}, {"b": 3}, r"\['a'\]"),
        (torch.randn(3, 4), torch.zeros(5), r"\[5\].*\[3, 4\]"),
    ],
)
def test_a_missing_none_is_explained(cond, null, message):
    with pytest.raises(ValueError, match=message):
        null_like(cond, null)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, "positive"),
        ({"mix": 1.0}, r"\[0, 1\)"),
        ({"interval": (0.8, 0.2)}, "low < high"),
        ({"drop": 1.5}, "share"),
        ({"drop_rows": "last"}, "coin"),
    ],
)
def test_bad_settings_say_what_is_wanted(options, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**options)
