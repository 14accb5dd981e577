"""References: what is kept on the disk and under which key, statistics files, the trained classifier, the floor."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from meanflow.data import DataError, Tensors
from meanflow.evaluation import PROTOCOLS, Gaussian, Judge, frechet_distance
from meanflow.evaluation.distances import Moments
from meanflow.evaluation.features import extractor
from meanflow.evaluation.references import part_of, prepared, quantised, read_statistics, statistics_hash
from meanflow.evaluation.resnet56 import ResNet56
from meanflow.evaluation.storage import keep, kept


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEANFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def resnet(tmp_path):
    torch.manual_seed(5)
    torch.save({"state_dict": ResNet56().state_dict()}, tmp_path / "random.th")
    return extractor("resnet56", weights=tmp_path / "random.th")


def images(n, seed=0, shape=(3, 32, 32)):
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return Tensors(x, torch.arange(n) % 10)


def test_features_are_computed_once_and_kept_by_content(cache, resnet):
    p = PROTOCOLS["cifar10-resnet56"]
    first = part_of(images(24), resnet, p, True)
    files = list(cache.iterdir())
    assert len(files) == 1 and files[0].suffix == ".safetensors"
    again = part_of(images(24), resnet, p, True)
    assert torch.equal(first.features, again.features) and first.look == again.look
    assert torch.equal(first.labels, again.labels) and again.moments.count == 24
    part_of(images(24, seed=1), resnet, p, True)
    part_of(images(24), resnet, replace(p, quantise=None), True)
    assert len(list(cache.iterdir())) == 3


def test_what_is_kept_is_what_is_used_and_damage_is_seen(cache, resnet):
    p = PROTOCOLS["cifar10-resnet56"]
    true = part_of(images(24), resnet, p, True)
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged .* and computed anew"):
        mended = part_of(images(24), resnet, p, True)
    assert torch.equal(mended.features, true.features)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="damaged"):
        part_of(images(24), resnet, p, True)
    about = {"a": 1}
    keep("x", about, {"v": torch.arange(3.0)}, {"said": [1]})
    tensors, extra = kept("x", about)
    assert tensors["v"].tolist() == [0, 1, 2] and extra == {"said": [1]} and kept("x", {"a": 2}) is None


def test_a_cache_that_cannot_be_written_is_warned_of(tmp_path, monkeypatch, resnet):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEANFLOW_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="cannot be written .* set MEANFLOW_CACHE"):
        part = part_of(images(6), resnet, PROTOCOLS["cifar10-resnet56"], True)
    assert part.features.shape == (6, 64)


def own(tmp_path, **changes):
    """A protocol with features of a user's file: the mean of each channel of images 4x4."""
    (tmp_path / "mine.py").write_text("def features(x):\n    return x.mean((2, 3))\n")
    return replace(
        PROTOCOLS["imagenet256-adm"], extractor=f"{tmp_path}/mine.py:features", weights_sha256=None, resize="none",
        shape=(3, 4, 4), **changes,
    )  # fmt: skip


def test_a_statistics_file_is_a_reference_and_its_images_are_not(tmp_path):
    """The file of ADM: mu and sigma of the training images, and in arr_0 images that are others."""
    x = images(500, shape=(3, 4, 4)).batch(range(500))[0]
    reference = Gaussian.of(quantised(x, "round").mean((2, 3)))
    file = tmp_path / "VIRTUAL.npz"
    pictures = np.zeros((10, 4, 4, 3), np.uint8)
    np.savez(file, mu=reference.mean.numpy(), sigma=reference.covariance.numpy(), arr_0=pictures)
    judge = Judge(own(tmp_path), data=file)
    other = images(400, seed=3, shape=(3, 4, 4)).batch(range(400))[0]
    found = judge.images(other)
    wanted = frechet_distance(Gaussian.of(quantised(other, "round").mean((2, 3))), reference)
    assert found.metrics["frechet"] == pytest.approx(wanted, rel=1e-6)
    assert found.left_out == {"inception_score": "these features know no classes"} and found.floor == {}
    assert found.protocol.reference.statistics == statistics_hash(read_statistics(file))
    np.savez(file, mu=np.zeros(3), sigma=np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"mu is \[3\] and sigma \[2, 2\]"):
        read_statistics(file)
    np.savez(tmp_path / "images.npz", arr_0=pictures)
    assert read_statistics(tmp_path / "images.npz") is None


def test_images_in_an_npz_are_a_reference_too(tmp_path):
    x = torch.randint(0, 256, (300, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "arr.npz", arr_0=x.numpy())
    ready = prepared(own(tmp_path), tmp_path / "arr.npz")
    features = (x.permute(0, 3, 1, 2).float() / 127.5 - 1).mean((2, 3))
    assert ready.protocol.reference.count == 300
    assert torch.allclose(ready.material.gaussian.mean, Moments.of(features).mean, atol=1e-6)


def test_another_resize_filter_than_the_protocols_is_refused(tmp_path):
    p = replace(own(tmp_path), resize="tf1-bilinear-299")
    with pytest.raises(ValueError, match="resize with none, the protocol imagenet256-adm with tf1-bilinear-299"):
        Judge(p, data=images(50, shape=(3, 4, 4)))


def test_data_that_are_missing_or_do_not_fit_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"which you have to name with data=.* a \.npz with mu and sigma"):
        Judge("cifar10-train")
    with pytest.raises(ValueError, match=r"is for images \(1, 8, 8\), the train images are \(3, 4, 4\)"):
        Judge("digits", data=images(50, shape=(3, 4, 4)), held_out=images(50, shape=(3, 4, 4)))
    with pytest.raises(ValueError, match=r"compares with held-out images, and .* name them with held_out="):
        Judge("cifar10-resnet56", data=images(20))
    with pytest.raises(ValueError, match="compares with training images; name them with data="):
        Judge("own-images", held_out=images(20))


def test_quantising_rounds_or_cuts_and_clips():
    x = torch.tensor([-3.0, -1.0, 0.0, 99.6 / 127.5 - 1, 1.0])
    levels = lambda how: ((quantised(x, how) + 1) * 127.5).round().tolist()  # noqa: E731
    assert levels("round") == [0, 0, 128, 100, 255] and levels("floor") == [0, 0, 127, 99, 255]
    every = torch.arange(256).float() / 127.5 - 1
    for how in ("round", "floor"):
        assert torch.equal(((quantised(every, how) + 1) * 127.5).round(), torch.arange(256).float())
    assert quantised(x, None) is x


def test_own_images_have_the_floor_of_two_halves():
    data = images(2000, shape=(1, 16, 16))
    judge = Judge("own-images", data=data)
    assert judge.protocol.reference.count == 2000 and judge.protocol.reference.split == "train"
    assert judge.floor["frechet"] > 0 and abs(judge.floor["kid"]) < 1e-3
    new = judge.images(images(1000, seed=9, shape=(1, 16, 16)).batch(range(1000))[0], torch.arange(1000) % 10)
    assert new.metrics["frechet"] < judge.floor["frechet"]
    assert new.left_out == {"copies": "there are no held-out images beside the training images"}


def test_vectors_are_judged_by_transport_and_kernels():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 2, generator=g)
    judge = Judge("vectors", data=x)
    near = judge.images(torch.randn(1000, 2, generator=g))
    far = judge.images(torch.randn(1000, 2, generator=g) + 1)
    assert near.metrics["sliced_wasserstein"] < 3 * judge.floor["sliced_wasserstein"]
    assert far.metrics["sliced_wasserstein"] == pytest.approx(1, rel=0.1)
    assert near.title() == "SW-pixels-1k" and abs(near.metrics["mmd"]) < 0.01 < far.metrics["mmd"]


def test_the_classifier_of_fashion_mnist_is_trained_once_and_always_the_same(cache, fashion_mnist):
    from meanflow.data import open_data

    whole = open_data(fashion_mnist, split="train")
    x, labels = whole.batch(range(2000))
    data = Tensors(((x + 1) * 127.5).round().to(torch.uint8), labels, classes=10)
    first = extractor("fashion-cnn", train=data)
    second = extractor("fashion-cnn", train=data)
    next(cache.glob("classifier-*")).unlink()
    third = extractor("fashion-cnn", train=data)
    assert first.sha256 == second.sha256 == third.sha256
    held, held_labels = whole.batch(range(2000, 3000))
    features = first(held)
    assert features.shape == (1000, 64)
    assert float((first.logits(features).argmax(1) != held_labels).double().mean()) < 0.6
    with pytest.raises(ValueError, match="name their folder"):
        extractor("fashion-cnn")
