"""Augmentations: an identity changes nothing, known maps give known images, labels say what was done."""

import math

import pytest
import torch

import meanflow as mf
from meanflow.data import EDMAugment, augmentation
from meanflow.data.augment import inverse_map, resample

IDENTITY = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])


def smooth(h=24, w=32):
    """A low-frequency image of a plane function that can be evaluated anywhere."""

    def f(x, y):
        return torch.sin(0.25 * x + 0.4) * torch.cos(0.2 * y - 0.3) + 0.05 * x

    ys, xs = torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2
    return f, xs.expand(h, w), ys[:, None].expand(h, w)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 8, 8), (2, 3, 17, 40)])
def test_an_identity_changes_nothing(shape):
    """Exactly: the wavelet filter makes reducing the inverse of enlarging, for noise as well."""
    x = torch.randn(shape)
    assert torch.allclose(resample(x, IDENTITY.expand(shape[0], 2, 3)), x, atol=5e-5)


def test_whole_pixel_shifts_are_exact_and_the_border_mirrors():
    x = torch.randn(1, 3, 32, 32)
    back = IDENTITY.clone()
    back[0, :, 2] = torch.tensor([-3.0, 2.0])
    moved = resample(x, back)
    assert torch.allclose(moved[..., 2:20, 5:30], x[..., 4:22, 2:27], atol=5e-5)
    assert torch.allclose(moved[..., 5, 0], x[..., 7, 3], atol=5e-5)  # column -3 is column 3


def test_known_maps_give_known_images():
    """Scaled by 1.3, stretched by 1.2 along 30 degrees, shifted by (2.5, -1.25): values of the function at the places
    that the formula names."""
    f, xs, ys = smooth()
    scale, stretch, angle, shift = (torch.tensor([v]) for v in (1.3, 1.2, math.pi / 6, 0.0))
    shift = torch.tensor([[2.5, -1.25]])
    back = inverse_map(scale, stretch, angle, shift)
    found = resample(f(xs, ys)[None, None], back)[0, 0]
    # Forwards: stretch along the axis at -angle (y points down), scale, shift.
    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    along, across = torch.tensor([c, -s]), torch.tensor([s, c])
    p = torch.stack([xs - 2.5, ys + 1.25], -1) / 1.3
    p = (p @ along)[..., None] * along / 1.2 + (p @ across)[..., None] * across * 1.2
    wanted = f(p[..., 0], p[..., 1])
    inside = (p[..., 0].abs() < 12) & (p[..., 1].abs() < 8)
    assert inside.sum() > 300 and (found - wanted)[inside].abs().max() < 0.015
    turned = resample(f(xs, ys)[None, None], inverse_map(scale, stretch, -angle, shift))[0, 0]
    assert (turned - wanted)[inside].abs().max() > 5e-2


def test_labels_say_what_was_done():
    edm, x = EDMAugment(), torch.randn(4000, 1, 8, 8)
    changed, labels = edm(x, torch.Generator().manual_seed(0))
    assert labels.shape == (4000, 6) and changed.shape == x.shape
    done = (labels != 0).float().mean(0)
    # Standard errors: 0.008 for one half, 0.005 for p = 0.12; a stretch is along x alone where the axis is not turned.
    wanted = torch.tensor([0.5, 0.12, 0.12, 0.06 * 0.12, 0.12, 0.12])
    assert (done - wanted).abs().max() < 0.03
    untouched = (labels == 0).all(1)
    assert torch.allclose(changed[untouched], x[untouched], atol=5e-5)
    only_mirrored = (labels[:, 0] == 1) & (labels[:, 1:] == 0).all(1)
    assert torch.allclose(changed[only_mirrored], x[only_mirrored].flip(3), atol=5e-5)
    assert only_mirrored.sum() > 1000 and untouched.sum() > 1000
    spread = labels[:, 1][labels[:, 1] != 0].std()
    assert spread == pytest.approx(1, abs=0.15)


def test_flip_mirrors_half_and_leaves_conditions():
    x, cond = torch.randn(2000, 1, 4, 4), torch.arange(2000)
    changed, same = augmentation("flip")(x, cond, torch.Generator().manual_seed(0))
    mirrored = (changed == x.flip(3)).flatten(1).all(1)
    assert same is cond and 0.45 < mirrored.float().mean() < 0.55
    assert torch.equal(changed[~mirrored], x[~mirrored])


def test_a_run_with_edm_augmentation_resumes_bit_equal(tmp_path):
    images = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8)
    options = {"batch": 16, "augment": "edm", "save_every": 32, "seed": 3}

    def objective():
        torch.manual_seed(0)
        net = mf.nets.UNet((3, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=(), augment_features=6)
        return mf.MeanFlow(net, times=mf.Times.cifar_v1(), weighting=mf.AdaptiveWeight(0.75))

    mf.fit(objective(), images, out=tmp_path / "whole", images=96, **options)
    for stop in (32, 96):
        mf.fit(objective(), images, out=tmp_path / "parts", images=stop, **options)
    whole, parts = (mf.load(tmp_path / name, raw=True).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    plain = dict(options, augment="none")
    mf.fit(objective(), images, out=tmp_path / "plain", images=96, **plain)
    other = mf.load(tmp_path / "plain", raw=True).state_dict()
    assert not all(torch.equal(whole[name], other[name]) for name in whole)


@pytest.mark.parametrize(
    ("net", "data", "augment", "message"),
    [
        (mf.nets.DiT((1, 8, 8), width=32, depth=1, heads=4), torch.zeros(8, 1, 8, 8), "edm", "augment_features=6"),
        (mf.nets.MLP((2,)), torch.zeros(8, 2), "flip", "is for images"),
        (mf.nets.DiT((1, 8, 8), width=32, depth=1, heads=4), torch.zeros(8, 1, 8, 8), "flop", "none, flip or edm"),
    ],
)
def test_augmentations_that_do_not_fit_are_refused(tmp_path, net, data, augment, message):
    with pytest.raises(ValueError, match=message):
        mf.fit(mf.MeanFlow(net), data, out=tmp_path / "run", images=16, batch=8, augment=augment)
    assert not (tmp_path / "run" / "checkpoints").exists()
