import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from autoencoders import kl_vae, tiny_vae
from meanflow.data import DataError, LatentContract, load_vae
from meanflow.data.crop import adm_crop

diffusers = pytest.importorskip("diffusers")


def images(count=2, size=32):
    return torch.rand(count, 3, size, size) * 2 - 1


def test_two_files_in_the_layout_of_taesd_are_the_autoencoder_of_diffusers(tmp_path):
    """The same weights under both names: an independent writing of the architecture."""
    theirs = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, latent_channels=4
    ).eval()
    for half, shift in (("encoder", 0), ("decoder", 1)):
        state = getattr(theirs, half).layers.state_dict()
        named = {f"{int(name.split('.')[0]) + shift}.{name.split('.', 1)[1]}": value for name, value in state.items()}
        torch.save(named, tmp_path / f"some_{half}.pth")
    ours, x = load_vae(tmp_path), images()
    mean, std = ours.encode(x)
    assert (ours.channels, ours.downsampling, ours.posterior, ours.scale) == (4, 8, False, None)
    assert torch.allclose(mean, theirs.encode(x).latents, atol=1e-6) and not std.any()
    z = torch.randn(2, 4, 4, 4) * 3
    expected = theirs.decode(z).sample.detach()
    assert torch.allclose(ours.decode(z), expected.clamp(-1, 1), atol=1e-5)
    # the mutants: latents that are not bounded, images taken for [-1, 1]
    assert not torch.allclose(ours.net.model.decoder[1:](z) * 2 - 1, expected, atol=1e-3)
    assert not torch.allclose(ours.net.model.encoder(x), theirs.encode(x).latents, atol=1e-3)
    theirs.save_pretrained(tmp_path / "diffusers")
    again = load_vae(tmp_path / "diffusers")
    assert torch.equal(again.encode(x)[0], theirs.encode(x).latents.detach()) and again.kind == "AutoencoderTiny"


def test_a_kl_autoencoder_gives_mean_and_std_of_its_posterior(tmp_path):
    folder = kl_vae(tmp_path / "model" / "vae", scaling_factor=0.3, shift_factor=0.1)
    vae, model, x = load_vae(tmp_path / "model"), diffusers.AutoencoderKL.from_pretrained(folder), images()
    posterior = model.encode(x).latent_dist
    mean, std = vae.encode(x)
    assert torch.equal(mean, posterior.mean.detach()) and torch.equal(std, posterior.std.detach())
    assert torch.equal(vae.decode(mean), model.decode(posterior.mean).sample.detach().clamp(-1, 1))
    assert (vae.kind, vae.channels, vae.downsampling, vae.posterior) == ("AutoencoderKL", 4, 2, True)
    assert (vae.shift, vae.scale) == ((0.1,), (0.3,))
    assert load_vae(folder).fingerprint == vae.fingerprint != load_vae(kl_vae(tmp_path / "b", seed=1)).fingerprint


def contract(**changes):
    known = dict(
        vae="a", vae_kind="k", vae_fingerprint="f", channels=2, downsampling=8, shift=(0.0,), scale=(1.0,),
        scaled_by="config", own_scale=None, crop="adm-centre", size=32, flip=True, posterior=True, count=1,
        mean=(0.0, 0.0), std=(1.0, 1.0),
    )  # fmt: skip
    return LatentContract(**{**known, **changes})


def test_mean_and_std_of_a_config_are_applied_as_diffusers_applies_them(tmp_path):
    mean, std = [0.1, -0.2, 0.3, 0.4], [1.5, 2.0, 2.5, 3.0]
    vae = load_vae(kl_vae(tmp_path, scaling_factor=0.5, latents_mean=mean, latents_std=std))
    rules, z = contract(channels=4, shift=vae.shift, scale=vae.scale), torch.randn(2, 4, 4, 4)
    # StableDiffusionXLPipeline before decoding: latents * std / scaling_factor + mean
    per = [torch.tensor(values).view(1, 4, 1, 1) for values in (mean, std)]
    assert torch.allclose(rules.denormalise(z), z * per[1] / 0.5 + per[0], atol=1e-6)
    assert torch.allclose(rules.normalise(rules.denormalise(z)), z, atol=1e-5)


def test_the_contract_survives_json():
    rules = contract(scale=(0.18215,), own_scale=(0.18215,), mean=(0.1, 1 / 3))
    assert LatentContract.from_dict(json.loads(json.dumps(rules.to_dict()))) == rules
    with pytest.raises(DataError, match=r"another version of meanflow .*extra"):
        LatentContract.from_dict({**rules.to_dict(), "extra": 1})


def psnr(x, y):
    return -10 * torch.log10(((x - y) / 2).square().mean((1, 2, 3)))


def test_taef2_reconstructs_photos(taef2, hands):
    files = sorted(hands.rglob("*.JPG"))[::250]
    squares = [np.asarray(adm_crop(Image.open(file).convert("RGB"), 128)) for file in files]
    x = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 127.5 - 1
    vae = load_vae(taef2)
    assert (vae.channels, vae.downsampling, vae.posterior) == (32, 8, False)
    z = vae.encode(x)[0]
    assert psnr(x, vae.decode(z)).min() > 30
    # the mutant: without the branch at the lowest resolution, which diffusers' AutoencoderTiny has not
    for block in [m for m in vae.net.modules() if getattr(m, "pool", None) is not None]:
        block.pool = None
    assert psnr(x, vae.decode(z)).max() < 25


def test_an_autoencoder_that_is_not_there_says_how_to_get_it(tmp_path):
    """A real process that is told that there is no network."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    words = ["encode", str(tmp_path), str(tmp_path / "out"), "--vae", "stabilityai/sd-vae-ft-mse"]
    done = subprocess.run(
        [sys.executable, "-m", "meanflow.cli", *words], capture_output=True, text=True, env=environment
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"not in the cache {tmp_path / 'hub'}" in done.stderr
    assert "hf download stabilityai/sd-vae-ft-mse config.json diffusion_pytorch_model.safetensors" in done.stderr
    assert "--local-dir sd-vae-ft-mse" in done.stderr and "--vae sd-vae-ft-mse" in done.stderr
    assert not (tmp_path / "out").exists()


class Trap:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def _trap(folder):
    (folder / "tiny_encoder.pth").write_bytes(pickle.dumps(Trap(folder / "sprung"), protocol=2))


def _cut(folder):
    file = folder / "tiny_decoder.pth"
    file.write_bytes(file.read_bytes()[:-2000])


def _rename(folder):
    state = torch.load(folder / "tiny_encoder.pth", weights_only=True)
    torch.save({f"down.{name}": value for name, value in state.items()}, folder / "tiny_encoder.pth")


def _gap(folder):
    state = torch.load(folder / "tiny_encoder.pth", weights_only=True)
    torch.save({n: v for n, v in state.items() if not n.startswith("1.")}, folder / "tiny_encoder.pth")


@pytest.mark.parametrize(
    "damage, message",
    [
        (_trap, "tiny_encoder.pth is damaged, or holds more than tensors"),
        (_cut, "tiny_decoder.pth is damaged"),
        (_rename, "down.0.weight is no weight of a numbered layer"),
        (_gap, "layer 1 of the encoder has no weights"),
        (lambda folder: (folder / "tiny_decoder.pth").unlink(), r"is no autoencoder \(tiny_encoder.pth\); wanted"),
    ],
)
def test_files_that_are_no_taesd_are_refused_without_running_anything(damage, message, tmp_path):
    damage(tiny_vae(tmp_path))
    with pytest.raises(DataError, match=message):
        load_vae(tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "source, config, message",
    [
        ("nowhere", None, "nowhere: there is no such folder; pass the folder of an autoencoder, or a hub id"),
        (".", {"_class_name": "UNet2DModel"}, "holds a UNet2DModel; wanted one of AutoencoderKL, AutoencoderTiny"),
        (".", {"_class_name": "AutoencoderKL", "in_channels": 1}, "takes images with 1 channels; wanted 3"),
        (".", {"_class_name": "AutoencoderKL"}, "cannot be loaded as AutoencoderKL from diffusion_pytorch_model"),
        (".", [1], "cannot be read as JSON"),
    ],
)
def test_folders_that_are_no_autoencoder_are_refused(source, config, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=message):
        load_vae(source)


def test_without_diffusers_the_error_names_the_extra(tmp_path, monkeypatch):
    kl_vae(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(DataError, match=r"need diffusers, which is not installed .*pip install 'meanflow\[latent\]'"):
        load_vae(tmp_path)
