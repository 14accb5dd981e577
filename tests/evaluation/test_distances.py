"""Distances against independent implementations on the same features, and against closed forms."""

import numpy as np
import pytest
import torch

from meanflow.evaluation import Gaussian, frechet_distance
from meanflow.evaluation.distances import (
    Moments,
    gaussian_mmd,
    inception_score,
    kernel_distance,
    sliced_wasserstein,
    unbiased_mmd,
)
from meanflow.evaluation.metrics import METRICS, Material, Missing, Sample, resampled


@pytest.fixture(scope="module")
def features():
    """Two sets of correlated features with different means and spreads, [600, 24] and [500, 24]."""
    g = torch.Generator().manual_seed(3)
    a = torch.randn(600, 24, generator=g) @ torch.randn(24, 24, generator=g)
    b = torch.randn(500, 24, generator=g) @ torch.randn(24, 24, generator=g) + 0.5
    return a, b


class AsGiven(torch.nn.Module):
    """Features passed through torchmetrics as if they were images."""

    num_features = 24

    def forward(self, x):
        return x


def test_frechet_distance_is_that_of_torchmetrics(features):
    fid = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance
    metric = fid(feature=AsGiven(), normalize=True).set_dtype(torch.float64)
    metric.inception, metric.used_custom_model = AsGiven(), True
    a, b = features
    metric.update(b.double(), real=True)
    metric.update(a.double(), real=False)
    ours = METRICS["frechet"](Sample(a), Material(Gaussian.of(b))).value
    assert ours == pytest.approx(float(metric.compute()), rel=1e-6)


def test_kernel_distance_is_that_of_torchmetrics(features):
    poly_mmd = pytest.importorskip("torchmetrics.image.kid").poly_mmd
    a, b = (f[:500] for f in features)
    # One subset of all rows: the same number whatever the order of the draw.
    ours = kernel_distance(a, b, subsets=1, size=500)
    assert ours == pytest.approx(float(poly_mmd(b.double(), a.double())), rel=1e-6)
    assert kernel_distance(a, b, subsets=5, size=100, seed=1) == kernel_distance(a, b, subsets=5, size=100, seed=1)
    assert kernel_distance(a, b, subsets=5, size=100, seed=1) != kernel_distance(a, b, subsets=5, size=100, seed=2)


def test_kernel_distance_is_unbiased_and_frechet_is_not():
    """Two draws of one distribution: the kernel distance straddles zero, the biased one of the diagonal does not."""
    draws = [torch.randn(2, 100, 8, generator=torch.Generator().manual_seed(i)) for i in range(60)]
    values = torch.tensor([kernel_distance(a, b, subsets=1) for a, b in draws])
    assert abs(values.mean()) < 3 * values.std() / 60**0.5
    biased = torch.tensor([_biased_kernel_distance(a.double(), b.double()) for a, b in draws])
    assert biased.mean() > 10 * biased.std() / 60**0.5
    assert min(frechet_distance(Gaussian.of(a), Gaussian.of(b)) for a, b in draws) > 0.1


def _biased_kernel_distance(a, b):
    k = [(x @ y.T / 8 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
    return float(k[0].mean() + k[1].mean() - 2 * k[2].mean())


def numpy_manifold(real, fake, k):
    """Precision and recall of Kynkaanniemi et al. by their definition: is a point within a ball of any other?"""

    def f(point, points):
        for centre in points:
            others = np.sort(np.linalg.norm(points - centre, axis=1))
            if np.linalg.norm(point - centre) <= others[k]:  # others[0] is the centre itself
                return 1
        return 0

    return np.mean([f(p, real) for p in fake]), np.mean([f(p, fake) for p in real])


def numpy_density_coverage(real, fake, k):
    """Density and coverage of Naeem et al. by their definition."""
    radius = [np.sort(np.linalg.norm(real - centre, axis=1))[k] for centre in real]
    inside = np.array([[np.linalg.norm(f - r) < d for r, d in zip(real, radius, strict=True)] for f in fake])
    return inside.sum() / (k * len(fake)), inside.any(0).mean()


def test_precision_recall_density_coverage_by_their_definitions(features):
    a, b = features[0][:90, :4], features[1][:80, :4]
    s, m = Sample(a), Material(Gaussian.of(b), b)
    precision, recall = numpy_manifold(b.double().numpy(), a.double().numpy(), 3)
    density, coverage = numpy_density_coverage(b.double().numpy(), a.double().numpy(), 5)
    assert 0.1 < precision < 0.95 and 0.1 < recall < 0.95 and 0.1 < coverage < 0.95
    for name, wanted in (
        ("precision", precision), ("recall", recall), ("density", density), ("coverage", coverage),
    ):  # fmt: skip
        assert METRICS[name](s, m).value == pytest.approx(wanted, rel=1e-6), name
    # Swapping the sets swaps precision and recall; a mix-up of the two would be seen.
    assert METRICS["recall"](Sample(b), Material(Gaussian.of(a), a)).value == pytest.approx(precision)
    assert abs(precision - recall) > 0.05


def test_moments_of_parts_are_those_of_the_whole():
    """Far from the origin, where sums of squares in single precision would lose everything."""
    f = torch.randn(1000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e4
    merged = Moments.total(Moments.of(part) for part in f.split([1, 399, 250, 350])).gaussian()
    assert torch.allclose(merged.mean, f.mean(0), rtol=1e-14)
    assert torch.allclose(merged.covariance, torch.cov(f.T), rtol=1e-9, atol=1e-12)
    x = f.float()
    squares = (x.T @ x / 1000 - torch.outer(x.mean(0), x.mean(0))).diagonal()
    assert (squares - 1).abs().max() > 0.1


def test_inception_score_of_known_predictions():
    """Sure and balanced over K classes: K. The same prediction for all: 1."""
    sure = torch.eye(5).repeat(20, 1) * 200
    assert inception_score(sure) == pytest.approx(5)
    assert inception_score(torch.randn(1, 5).expand(40, 5)) == pytest.approx(1)


def test_inception_score_by_its_definition():
    logits = torch.randn(200, 7, generator=torch.Generator().manual_seed(0))
    p = np.exp(logits.double().numpy())
    p /= p.sum(1, keepdims=True)
    wanted = np.exp(np.mean(np.sum(p * (np.log(p) - np.log(p.mean(0))), 1)))
    assert inception_score(logits) == pytest.approx(wanted, rel=1e-9)


def test_sliced_wasserstein_of_shifted_vectors_is_the_shift_over_the_root_of_the_dimension():
    """A shift d moves the quantiles on direction w by w.d, whose mean square is |d|^2 / D."""
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([3.0, -1.0, 2.0])
    wanted = float(shift.norm() / 3**0.5)
    assert sliced_wasserstein(x, x + shift, directions=1000) == pytest.approx(wanted, rel=0.05)
    assert sliced_wasserstein(x, x) == 0
    scaled = sliced_wasserstein(x, 2 * x, directions=500)
    assert scaled == pytest.approx(1, rel=0.1)


def test_mmd_by_its_definition_and_its_sign():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 2, generator=g), torch.randn(24, 2, generator=g) + 1
    n, m = len(x), len(y)
    k = lambda a, b: float(torch.exp(-(a - b).double().square().sum() / 2))  # noqa: E731
    wanted = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    wanted += sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    wanted -= 2 * sum(k(a, b) for a in x for b in y) / (n * m)
    ours = unbiased_mmd(x, y, lambda a, b: torch.exp(-torch.cdist(a, b).square() / 2))
    assert ours == pytest.approx(wanted, rel=1e-6)
    assert gaussian_mmd(x, y) > 5 * abs(gaussian_mmd(x[:15], x[15:]))


def test_copies_of_training_data_are_found_and_new_data_are_not():
    g = torch.Generator().manual_seed(0)
    train, held, new = (torch.randn(n, 6, generator=g) for n in (2000, 1000, 1000))
    m = Material(Gaussian.of(held), held, train, held)
    assert METRICS["copies"](Sample(new), m).value < 0.03
    tenth = torch.cat([new[:900], train[:100] + 1e-3])
    assert METRICS["copies"](Sample(tenth), m).value == pytest.approx(0.1, abs=0.03)
    nearest = METRICS["nearest"](Sample(new), m)
    assert nearest.value == pytest.approx(nearest.null, rel=0.05)
    assert METRICS["nearest"](Sample(train), m).value < 1e-6


def test_what_a_metric_lacks_is_said():
    m = Material(Gaussian.of(torch.randn(50, 4)))
    for name in ("kid", "precision", "recall", "density", "coverage", "nearest", "copies", "agreement"):
        with pytest.raises(Missing):
            METRICS[name](Sample(torch.randn(60, 4)), m)


@pytest.mark.parametrize("name", ["frechet", "kid", "mmd"])
def test_the_bootstrap_has_the_spread_of_new_draws(name):
    """Standard deviation of resampled distances against that of fresh samples of the same distribution."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 4, generator=g)
    reference = Material(Gaussian(torch.zeros(4).double(), torch.eye(4).double()), rows)
    fresh = torch.tensor([METRICS[name](_drawn(g), reference).value for _ in range(60)])
    boot = [resampled(METRICS[name](_drawn(g), reference), 60, i).std() for i in range(5)]
    assert 0.7 < float(torch.stack(boot).mean() / fresh.std()) < 1.4


def _drawn(g):
    return Sample(torch.randn(400, 4, generator=g) * 1.3 + 0.3)
