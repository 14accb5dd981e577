"""Every guard fires on a made-up mistake of its kind, says why, and lets pass what is right."""

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from meanflow.data import digits
from meanflow.evaluation import Gaussian, Judge, frechet_distance, judge_images
from meanflow.evaluation.distances import FrechetTo
from meanflow.evaluation.guards import (
    Guards,
    Look,
    Refused,
    check_belief,
    check_duplicates,
    check_finite,
    check_floor,
    check_folder,
    check_number,
    check_reference,
    check_texture,
    check_values,
    digests,
)
from mosaics import mosaics


@pytest.fixture(scope="module")
def judge():
    return Judge("digits")


@pytest.fixture(scope="module")
def real():
    """300 training images in [-1, 1] with their labels."""
    return digits("train").batch(range(300))


def test_real_images_pass_every_guard(judge, real):
    r = judge.images(*real)
    assert r.allowed == () and r.metrics["frechet"] < 3


def test_unit_range_given_as_minus_one_to_one(judge, real):
    x, labels = real
    with pytest.raises(Refused, match=r"\[0, 1\] given as \[-1, 1\]: pass x \* 2 - 1"):
        judge.images((x + 1) / 2, labels)


def test_minus_one_to_one_given_as_unit_range(judge, real):
    x, labels = real
    with pytest.raises(Refused, match=r"images look like \[-1, 1\] \(min -1, max 1\); said to be in \[0, 1\]"):
        judge.images(x, labels, value_range=(0, 1))
    right = judge.images((x + 1) / 2, labels, value_range=(0, 1))
    assert right.metrics["frechet"] == pytest.approx(judge.images(x, labels).metrics["frechet"], rel=1e-5)


def test_bytes_given_as_floats(judge, real):
    x, labels = real
    as_bytes = ((x + 1) * 127.5).round()
    with pytest.raises(Refused, match=r"0\.\.255 given as floats"):
        judge.images(as_bytes, labels)
    assert judge.images(as_bytes.to(torch.uint8), labels).metrics["frechet"] < 3
    with pytest.raises(ValueError, match=r"uint8 or floats, got torch\.int64"):
        judge.images(as_bytes.long(), labels)


def test_nan_samples_are_counted(judge, real):
    x = real[0].clone()
    x[3, 0, 0, :2] = float("nan")
    with pytest.raises(Refused, match="2 of 19,200 values of the samples are NaN or Inf"):
        judge.images(x)
    check_finite(Guards(), Look.at(real[0]))


def test_nan_metrics_are_refused():
    g = Gaussian.of(torch.randn(50, 3))
    with pytest.raises(Refused, match="kid is nan"):
        check_belief(Guards(), {"frechet": 1.0, "kid": float("nan")}, 0.5, g)
    with pytest.raises(Refused, match="distances are not negative"):
        check_belief(Guards(), {"frechet": -0.5}, 0.5, g)


def test_too_few_samples_for_the_dimensions_need_asking(judge, real):
    x, labels = real
    with pytest.raises(Refused, match=r"60 samples for 64 features make a singular covariance.*allow='small'"):
        judge.images(x[:60], labels[:60])
    r = judge_images(x[:60], "digits", labels[:60], allow="small")
    assert r.title() == "FD-pixels-60" and r.allowed == ("small",) and "ALLOWED: small" in str(r)
    with pytest.raises(Refused, match=r"500 samples for 2,048 features"):
        check_number(Guards(), 500, 2048, 50_000)
    check_number(Guards(), 2049, 2048, 50_000)


def test_two_ranks_with_one_seed():
    x = torch.randn(100, 1, 8, 8)
    with pytest.raises(Refused, match=r"100 of 200 samples repeat another one bit for bit \(numbers 0 and 100 do\)"):
        check_duplicates(Guards(), digests(torch.cat([x, x])))
    check_duplicates(Guards(), digests(torch.cat([x, torch.randn(100, 1, 8, 8)])))


def test_the_reference_itself_is_no_result(judge):
    held = digits("held_out").batch(range(359))
    with pytest.raises(Refused, match="images of the reference itself"):
        judge.images(*held)
    r = judge_images(held[0], "digits", held[1], allow=("belief",))
    assert abs(r.metrics["frechet"]) < 1e-6 and r.allowed == ("belief",)


def test_the_distance_of_the_reference_to_itself_is_zero():
    f = torch.randn(200, 6).double()
    good = Gaussian.of(f)
    check_reference(Guards(), FrechetTo(good))
    damaged = good.covariance.clone()
    damaged[0, 0] -= 3
    with pytest.raises(Refused, match=r"reference to itself is .* damaged"):
        check_reference(Guards(), FrechetTo(Gaussian(good.mean, damaged)))


def test_halves_that_were_not_prepared_alike():
    f = torch.randn(2000, 5)
    a, b = Gaussian.of(f[:1000]), Gaussian.of(f[1000:])
    check_floor(Guards(), frechet_distance(a, b), b)
    other = Gaussian.of((f[:1000] + 4) / 2)
    with pytest.raises(Refused, match="the two parts of the data were not prepared alike"):
        check_floor(Guards(), frechet_distance(other, b), b)


def test_another_shape_is_not_resized_on_the_way(judge):
    with pytest.raises(Refused, match=r"shape \(1, 16, 16\), the protocol wants \(1, 8, 8\)"):
        judge.images(torch.rand(100, 1, 16, 16) * 2 - 1)


def test_unknown_guards_are_named():
    with pytest.raises(ValueError, match="no guard 'ranges'; there are range, finite"):
        Guards(("ranges",))


def test_lossy_files_are_found_whatever_they_are_called(tmp_path):
    image = Image.fromarray(np.arange(48 * 48, dtype=np.uint16).reshape(48, 48).astype(np.uint8))
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.webp", lossless=True)
    check_folder(Guards(), [tmp_path / "a.png", tmp_path / "b.webp"])
    image.save(tmp_path / "c.png", format="JPEG")
    image.save(tmp_path / "d.webp", quality=80)
    for name in ("c.png", "d.webp"):
        with pytest.raises(Refused, match=rf"1 of 2 files are lossy, the first is .*{name}"):
            check_folder(Guards(), [tmp_path / "a.png", tmp_path / name])


def look(images):
    return Look.at(torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1)


def each(function, images):
    return np.stack([np.asarray(function(Image.fromarray(image))) for image in images])


def jpeg(quality):
    def through(image):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return through


@pytest.fixture(scope="module")
def pictures(request):
    from conftest import SHARED

    folder = SHARED / "data" / "cifar10"
    if not folder.is_dir():
        pytest.skip("CIFAR-10 is not beside this checkout (../shared/data/cifar10)")
    images = mosaics(folder, ["test_00.webp", "train_00.webp"]).permute(0, 2, 3, 1).numpy()
    return look(images[:1000]), images[1000:1400]


def test_jpeg_is_seen_in_the_pixels(pictures):
    reference, images = pictures
    check_texture(Guards(), look(images), reference)
    with pytest.raises(
        Refused, match=r"times as large at borders of 8x8 blocks as beside .* JPEG\. Save samples as PNG"
    ):
        check_texture(Guards(), look(each(jpeg(75), images)), reference)


@pytest.fixture(scope="module")
def photos():
    """125 photos of 100x100 pixels."""
    from conftest import SHARED

    file = SHARED / "data" / "sign-digits100" / "sign-digits100.zip"
    if not file.is_file():
        pytest.skip("the photos of hands are not beside this checkout (../shared/data/sign-digits100)")
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.lower().endswith(".jpg")][::8]
        return [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]


def shrunk(photos, filter):
    return look(np.stack([np.asarray(photo.resize((32, 32), Image.Resampling[filter])) for photo in photos]))


def test_another_resize_filter_is_seen_in_the_finest_differences(photos):
    """A reference made with Lanczos; other photos made with it, with antialiased bilinear, and with single pixels."""
    reference = shrunk(photos[::2], "LANCZOS")
    check_texture(Guards(), shrunk(photos[1::2], "LANCZOS"), reference)
    for filter, seen in (("BILINEAR", "smoother"), ("NEAREST", "sharper")):
        with pytest.raises(Refused, match=f"finest differences .* resized with another filter look so .{seen}"):
            check_texture(Guards(), shrunk(photos[1::2], filter), reference)


def test_a_look_adds_up_over_batches(real):
    x = real[0]
    whole, parts = Look.at(x), Look.total(Look.at(part) for part in x.split(70))
    assert parts.fine == pytest.approx(whole.fine) and parts.values == whole.values and parts.dark == whole.dark
    assert (parts.lowest, parts.highest) == (whole.lowest, whole.highest)
    check_values(Guards(), parts, whole, (-1, 1), from_files=True)
