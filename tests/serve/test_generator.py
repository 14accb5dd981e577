"""Runs of other kinds: points, latents, conditions that are no class."""

import numpy as np
import pytest
import torch
from PIL import Image

import meanflow as mf
from autoencoders import tiny_vae
from meanflow.cli import main
from meanflow.serve import Generator, Job

pytest.importorskip("fastapi", reason="FastAPI is not installed (extra serve)")
FULL = (1.0, 0.0)


def fitted(folder, data, **net):
    """A run of one step."""
    net = mf.nets.MLP(shape=tuple(data.shape), width=8, depth=1, **net)
    mf.fit(mf.MeanFlow(net), data, out=folder, images=8, batch=8, loggers=())
    return folder


def test_points_have_no_labels_and_are_drawn(tmp_path):
    generator = Generator(fitted(tmp_path / "a", mf.data.Tensors(torch.randn(50, 2))))
    assert generator.pictures and generator.classes is None and generator.class_names == ()
    x = generator.draw([1, 2], None, FULL, None)
    assert torch.equal(x, mf.sample(mf.load(tmp_path / "a"), mf.noise_from_seeds([1, 2], (2,))))
    with pytest.raises(ValueError, match="without classes"):
        generator.label_of(0)
    assert "nothing to guide" in generator.guides()


def test_longer_vectors_cannot_be_drawn(tmp_path):
    assert not Generator(fitted(tmp_path / "a", mf.data.Tensors(torch.randn(50, 5)))).pictures


def test_a_condition_that_is_no_class_is_refused(tmp_path):
    data = mf.data.Tensors(torch.randn(50, 2), torch.randn(50, 3))
    run = fitted(tmp_path / "a", data, condition_features=3)
    with pytest.raises(ValueError, match="condition that is no class"):
        Generator(run)


def test_latents_are_decoded_as_the_command_does(tmp_path):
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)):
        file = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    vae, latents, run = tiny_vae(tmp_path / "vae"), tmp_path / "latents", tmp_path / "run"
    assert main(["encode", str(tmp_path / "images"), str(latents), "--vae", str(vae), "--size", "32"]) == 0
    assert main(["train", str(latents), "--images", "16", "--batch", "16", "--out", str(run)]) == 0
    assert main(["sample", str(run), "--seeds", "3", "--classes", "1", "--out", str(tmp_path / "png")]) == 0
    generator = Generator(run)
    x = generator.draw([3], [1], FULL, None)
    assert x.shape == (1, 3, 32, 32) and generator.pictures
    (file,) = (tmp_path / "png").iterdir()
    wanted = torch.from_numpy(np.asarray(Image.open(file)).astype(float))
    got = mf.evaluation.pictures.to_uint8(x)[0].permute(1, 2, 0).double()
    assert (got - wanted).abs().max() <= 1


def test_jobs_share_calls_by_times_and_guidance():
    assert Job((1,), (2,), FULL).key == Job((3,), (4,), FULL).key != Job((1,), (2,), FULL, 2.0).key
