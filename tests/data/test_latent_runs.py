"""From images to decoded samples: the commands, the contract in the run, and what is said when something is wrong."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import meanflow as mf
from autoencoders import kl_vae, photos, tiny_vae
from meanflow.cli import main
from meanflow.data import DataError, Encoding, LatentCache, batches, encode, load_vae
from meanflow.training import checkpoint

NET = ["--net.width", "16", "--net.depth", "1", "--net.heads", "2", "--net.patch", "4"]
SHORT = [*NET, "--images", "64", "--batch", "16", "--recipe", "dit-tiny"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with photos, two autoencoders, latents of the first and a run on them, all made by the commands."""
    pytest.importorskip("diffusers")
    home = tmp_path_factory.mktemp("home")
    photos(home / "pets")
    kl_vae(home / "vae")
    tiny_vae(home / "other")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["encode", "pets", "latents", "--vae", "vae", "--size", "16", "--scale", "measured"]) == 0
        assert main(["train", "latents", *SHORT, "--out", "run"]) == 0
    return home


@pytest.fixture
def at_home(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv("COLUMNS", "120")
    return home


def complaint(capsys, *words):
    """The text of a command that is refused with exit code 2."""
    capsys.readouterr()
    assert main(list(words)) == 2
    return capsys.readouterr().err.replace("\n", " ")


def test_the_contract_is_in_the_header_the_run_and_the_network(home):
    cache = LatentCache(home / "latents")
    assert cache.latents.vae == str(home / "vae") and cache.latents.count == 22
    saved = json.loads((home / "run" / "config.json").read_text())["data"]
    assert saved["kind"] == "latents" and saved["latents"] == json.loads(json.dumps(cache.latents.to_dict()))
    net = mf.load(home / "run")
    assert net.latents == cache.latents and net.shape == cache.shape == (4, 8, 8)
    with_images = home / "images-run"
    mf.fit(mf.MeanFlow(mf.nets.MLP((2,), width=8, depth=1)), torch.randn(8, 2), out=with_images, images=8, batch=8)
    assert mf.load(with_images).latents is None


def test_decoding_by_the_contract_is_the_vae_on_latents_as_it_made_them(home):
    """No number typed by hand, and the mutant: scaled latents fed to the decoder are other images."""
    cache, vae = LatentCache(home / "latents"), load_vae(home / "vae")
    stored = load_file(home / "latents" / "shards" / "000000.safetensors")["mean"][:4, 0].float()
    x = cache.batch(range(4))[0]
    images = mf.load(home / "run").latents.decode(x)
    assert images.shape == (4, 3, 16, 16) and torch.allclose(images, vae.decode(stored), atol=1e-3)
    assert not torch.allclose(images, vae.decode(x), atol=0.05)


def test_grids_while_training_are_decoded(home):
    grid = Image.open(next((home / "run" / "grids").glob("*.png")))
    assert grid.mode == "RGB" and grid.size == (2 * 18 * 3, 4 * 18 * 3)


def test_sample_decodes_to_pictures_and_leaves_latents_in_arrays(at_home):
    assert main(["sample", "run", "--seeds", "0-3", "--out", "grid.png"]) == 0
    assert Image.open("grid.png").size == (2 * 18 * 3, 2 * 18 * 3)
    assert main(["sample", "run", "--seeds", "0-3", "--out", "single"]) == 0
    assert main(["sample", "run", "--seeds", "0-3", "--out", "x.npz", "--no-decode"]) == 0
    latents = np.load("x.npz")["x"]
    assert latents.shape == (4, 4, 8, 8)
    decoded = mf.load("run").latents.decode(torch.from_numpy(latents))[1]
    written = torch.from_numpy(np.array(Image.open("single/000001-class1.png"))).permute(2, 0, 1).float() / 127.5 - 1
    assert (decoded - written).abs().max() <= 1 / 127.5


def test_wrong_use_of_sample_is_explained(at_home, capsys):
    text = complaint(capsys, "sample", "run", "--no-decode", "--out", "x.png")
    assert "--no-decode writes latents, which need --out name.npz" in text
    text = complaint(capsys, "sample", "run", "--vae", "other")
    assert f"were made by the VAE {at_home / 'vae'} (weights" in text and f"but {at_home / 'other'} has other" in text
    assert "leave --no-decode out" in complaint(capsys, "sample", "images-run", "--no-decode")
    text = complaint(capsys, "sample", "images-run", "--vae", "vae")
    assert "decodes latents [B, 4, h, w], these samples are" in text


def test_an_autoencoder_that_moved_is_found_by_its_weights(at_home, tmp_path, capsys):
    shutil.copytree(at_home / "run", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["data"]["latents"]["vae"] = str(tmp_path / "gone")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    text = complaint(capsys, "sample", str(tmp_path / "run"), "--seeds", "0")
    assert f"{tmp_path / 'gone'}: there is no such folder" in text
    assert (
        main(["sample", str(tmp_path / "run"), "--seeds", "0", "--vae", "vae", "--out", str(tmp_path / "a.png")]) == 0
    )


def test_training_goes_on_without_grids_where_the_autoencoder_is_gone(at_home, tmp_path, capsys):
    shutil.copytree(at_home / "latents", tmp_path / "latents")
    header = json.loads((tmp_path / "latents" / "latents.json").read_text())
    header["latents"]["vae"] = "some/vae"
    (tmp_path / "latents" / "latents.json").write_text(json.dumps(header))
    assert main(["train", str(tmp_path / "latents"), *SHORT, "--out", str(tmp_path / "run")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "no sample grids" in line]
    assert len(lines) == 1 and "some/vae: is no folder here" in lines[0]
    assert not (tmp_path / "run" / "grids").exists()


def test_going_on_with_latents_of_another_vae_names_both(at_home, capsys):
    assert main(["encode", "pets", "others", "--vae", "other", "--size", "16"]) == 0
    text = complaint(capsys, "train", "others", *SHORT, "--net.patch", "1", "--out", "run")
    assert f"trained on latents of the VAE {at_home / 'vae'} (weights" in text
    assert f"these are latents of {at_home / 'other'} (weights" in text and "Choose another output folder" in text


def test_a_wrong_scale_ends_training_before_anything_is_written(at_home, capsys):
    assert main(["encode", "pets", "wrong", "--vae", "other", "--size", "16", "--scale", "9"]) == 0
    assert "warning: wrong: the scaled latents have a standard deviation" in capsys.readouterr().err
    text = complaint(capsys, "train", "wrong", *SHORT, "--net.patch", "1", "--out", "never")
    assert "expected about 1; they were scaled by 9 (given)" in text and not (at_home / "never").exists()
    assert main(["encode", "pets", "wrong", "--vae", "other", "--size", "16", "--scale", "measured"]) == 0
    assert main(["train", "wrong", *SHORT, "--net.patch", "1", "--out", "now"]) == 0


def test_an_unfinished_or_truncated_cache_is_named_by_train(at_home, tmp_path, capsys):
    shutil.copytree(at_home / "latents", tmp_path / "latents")
    shard = next((tmp_path / "latents" / "shards").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-7])
    text = complaint(capsys, "train", str(tmp_path / "latents"), *SHORT)
    assert f"{shard}: has" in text and "with the same command: meanflow encode pets latents --vae" in text
    (tmp_path / "latents" / "latents.json").unlink()
    assert "encoding is not finished" in complaint(capsys, "train", str(tmp_path / "latents"), *SHORT)


def test_options_for_images_are_refused_for_latents(at_home, capsys):
    assert "size=32 is for encoded images, these samples are [4, 8, 8]" in complaint(
        capsys, "train", "latents", "--size", "32"
    )


def weights(out):
    newest = checkpoint.checkpoints(out / "checkpoints")[-1]
    return checkpoint.read(newest, "weights.safetensors")


def trained(cache, out, *lengths):
    for images in lengths:
        torch.manual_seed(0)
        net = mf.nets.DiT(cache.shape, patch=4, width=16, depth=1, heads=2, classes=2)
        mf.fit(mf.MeanFlow(net), cache, out=out, images=images, batch=16, save_every=64, grid_every=10**9)
    return weights(out)


def test_a_resumed_run_draws_the_same_latents_bit_for_bit(home, tmp_path):
    cache = LatentCache(home / "latents")
    whole, parts = trained(cache, tmp_path / "whole", 192), trained(cache, tmp_path / "parts", 64, 192)
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    # the mutant: the means instead of draws end elsewhere
    means = trained(mf.data.open_data(cache.batch(range(22))), tmp_path / "means", 192)
    assert not all(torch.equal(means[name], value) for name, value in whole.items())


def test_latents_of_ones_own_in_an_npz_train_from_the_command_line(tmp_path, monkeypatch, capsys):
    """[N, 16, 8, 8] with labels, too large by the scale of FLUX.1, which is said but not refused."""
    monkeypatch.chdir(tmp_path)
    labels = np.arange(32) % 2
    np.savez("own.npz", latents=np.random.default_rng(0).normal(size=(32, 16, 8, 8)) / 0.3611, labels=labels)
    assert main(["train", "own.npz", *SHORT]) == 0
    said = capsys.readouterr()
    assert "samples of shape (16, 8, 8), classes: 2" in said.out
    assert "own.npz: the scaled latents" in said.err and "the scale 0.3611 of FLUX.1 forgotten?" in said.err
    assert main(["sample", "runs/own", "--seeds", "0-3", "--out", "x.npz"]) == 0
    assert np.load("x.npz")["x"].shape == (4, 16, 8, 8)


def test_channels_last_latents_are_turned(tmp_path):
    """As the authors' code stores them; a cube of channels first stays as it is."""
    x = np.random.default_rng(0).normal(size=(6, 8, 8, 4)).astype(np.float32)
    np.save(tmp_path / "a.npy", x)
    data = mf.data.open_data(tmp_path / "a.npy")
    assert data.shape == (4, 8, 8) and np.array_equal(data.batch([2])[0][0], x[2].transpose(2, 0, 1))
    for shape in ((6, 4, 8, 8), (6, 8, 8, 8), (6, 32, 16, 16), (6, 16, 32, 32)):
        np.save(tmp_path / "b.npy", np.zeros(shape, np.float32))
        assert mf.data.open_data(tmp_path / "b.npy").shape == shape[1:]


def test_a_random_data_set_of_ones_own_gets_seeded_generators(tmp_path):
    """The extension of the protocol, with nothing of latents in it; without `random` no generator comes."""

    class Jittered(mf.data.Tensors):
        random = True

        def batch(self, indices, generator=None):
            x, cond = super().batch(indices)
            return (x if generator is None else x + torch.randn(x.shape, generator=generator)), cond

    class Fixed(mf.data.Tensors):
        def batch(self, indices):
            return super().batch(indices)

    x = torch.zeros(8, 3)
    first, again, other = (batches(Jittered(x), 4, seed=seed, start=0) for seed in (1, 1, 2))
    drawn = [[next(stream)[0] for _ in range(3)] for stream in (first, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not torch.equal(drawn[0][0], drawn[2][0]) and not torch.equal(drawn[0][0], drawn[0][1])
    assert not next(batches(Fixed(x), 4, seed=1))[0].any()


def test_encode_refuses_what_it_cannot_read(at_home, capsys):
    assert "there is no such folder" in complaint(capsys, "encode", "nowhere", "out", "--vae", "other", "--size", "16")
    assert "workers must be at least 1" in complaint(
        capsys, "encode", "pets", "out", "--vae", "other", "--workers", "0"
    )
    with pytest.raises(DataError, match="holds no images"):
        encode(at_home / "vae", at_home / "out", load_vae("other"), Encoding(16))
    assert not (at_home / "out").exists()
