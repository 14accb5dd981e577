"""Distances against closed forms and an independent implementation; the judge of the digits."""

import numpy as np
import pytest
import scipy.linalg
import torch

from meanflow.data import digits
from meanflow.evaluation import Gaussian, Judge, frechet_distance, nearest_distances
from meanflow.evaluation.classifier import KernelClassifier
from meanflow.evaluation.pictures import picture, single, to_uint8
from oracles import relative


def independent(a, b):
    """The textbook formula with scipy's matrix square root, in numpy."""
    a, b = a.double().numpy(), b.double().numpy()
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(ca @ cb).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root))


def test_frechet_distance_of_isotropic_gaussians_is_closed_form():
    """N(m, s^2 I) and N(n, q^2 I): |m - n|^2 + D (s - q)^2."""
    eye = torch.eye(6, dtype=torch.float64)
    m, n = torch.zeros(6).double(), torch.full((6,), 0.5).double()
    distance = frechet_distance(Gaussian(m, 4 * eye), Gaussian(n, 0.25 * eye))
    assert distance == pytest.approx(6 * 0.25 + 6 * 1.5**2, rel=1e-12)


def test_frechet_distance_is_the_independent_implementations():
    g = torch.Generator().manual_seed(0)
    a = torch.randn(400, 20, generator=g) @ torch.randn(20, 20, generator=g)
    b = torch.randn(300, 20, generator=g) @ torch.randn(20, 20, generator=g) + 1
    ours = frechet_distance(Gaussian.of(a), Gaussian.of(b))
    assert ours == pytest.approx(independent(a, b), rel=1e-6)
    assert frechet_distance(Gaussian.of(b), Gaussian.of(a)) == pytest.approx(ours, rel=1e-9)
    assert abs(frechet_distance(Gaussian.of(a), Gaussian.of(a))) < 1e-9 * ours


def test_leaving_out_the_square_root_is_noticed():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(400, 5, generator=g) * 2, torch.randn(400, 5, generator=g)
    ca, cb = Gaussian.of(a).covariance, Gaussian.of(b).covariance
    wrong = float((ca + cb - 2 * ca @ cb).trace())
    assert abs(wrong - independent(a, b)) > 1


def test_distance_survives_singular_covariances():
    """Constant border pixels make the covariance of the digits singular."""
    flat = digits("all").batch(range(1797))[0].flatten(1)
    assert float(torch.linalg.eigvalsh(Gaussian.of(flat).covariance)[0]) < 1e-9
    assert frechet_distance(Gaussian.of(flat[:900]), Gaussian.of(flat[900:])) > 0


@pytest.mark.parametrize(
    ("features", "message"), [(torch.tensor([[1.0, float("nan")]] * 3), "NaN"), (torch.zeros(1, 3), "N >= 2")]
)
def test_bad_features_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        Gaussian.of(features)


def test_nearest_distances_against_all_pairs():
    x, y = torch.randn(50, 4), torch.randn(70, 4)
    assert relative(nearest_distances(x, y, chunk=7), torch.cdist(x, y).min(1).values) < 1e-6


def test_the_judge_tells_data_from_copies_from_noise_from_wrong_labels():
    judge = Judge("digits", allow=("belief",))
    assert judge.protocol.error < 0.02 and 0.1 < judge.floor["frechet"] < 1
    train, labels = digits("train").batch(range(1438))
    held, held_labels = digits("held_out").batch(range(359))
    copies = judge.images(train, labels).metrics
    assert copies["frechet"] == pytest.approx(judge.floor["frechet"]) and copies["nearest"] < 1e-3
    assert copies["agreement"] > 0.99 and copies["copies"] == 1
    fresh = judge.images(held, held_labels).metrics
    assert abs(fresh["frechet"]) < 1e-6 and fresh["nearest"] == pytest.approx(judge.floor["nearest"])
    assert fresh["copies"] < 0.03
    assert judge.images(held, (held_labels + 1) % 10).metrics["agreement"] < 0.05
    noise = judge.images(torch.rand(500, 1, 8, 8) * 2 - 1, torch.arange(500) % 10, from_files=False).metrics
    assert noise["frechet"] > 10 and noise["agreement"] < 0.3 and noise["precision"] < 0.01


def test_classifier_is_deterministic_and_right_on_separate_clusters():
    labels = torch.arange(60) % 3
    x = torch.randn(60, 2) * 0.1 + labels[:, None] * 3.0
    assert torch.equal(KernelClassifier(x, labels, 3)(x), labels)


def test_rounding_is_to_the_nearest_and_clips():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, 3.2 / 255 - 1]).reshape(1, 6)
    assert to_uint8(x).tolist() == [[0, 0, 128, 255, 255, 2]]


def test_pictures_hold_every_sample():
    x = torch.stack([torch.full((1, 8, 8), v) for v in (-1.0, 0.0, 1.0)])
    grid = picture(x, columns=3)
    assert grid.size == (3 * 10 * 6, 10 * 6)
    assert [grid.getpixel((30 + 60 * i, 30)) for i in range(3)] == [0, 128, 255]
    assert single(torch.zeros(3, 4, 5)).size == (5, 4)
    assert picture(torch.randn(500, 2)).size == (400, 400)
    with pytest.raises(ValueError, match=r"\[2, 5\]"):
        picture(torch.randn(2, 5))
