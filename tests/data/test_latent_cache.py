"""Draws from the posterior, their order, and the check of their scale."""

import json
import math
import os
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from autoencoders import kl_vae, photos
from meanflow.data import DataError, Encoding, LatentCache, Tensors, batches, check_scale, encode, load_vae
from meanflow.data.latent_shards import mapped, shard_path

HOW = Encoding(size=16, shard_size=5, batch=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def cache(folder, tmp_path_factory):
    pytest.importorskip("diffusers")
    vae = load_vae(kl_vae(tmp_path_factory.mktemp("kl"), scaling_factor=1.5, shift_factor=0.2))
    return encode(folder, tmp_path_factory.mktemp("cache") / "latents", vae, HOW)


def stored(cache, name, row):
    shard, place = divmod(row, HOW.shard_size)
    return torch.from_numpy(mapped(shard_path(cache.root, shard))[name][place].copy()).float()


def test_draws_are_the_stored_posterior_within_their_standard_error(cache):
    """Standard normal residuals of 500 draws of three images, and a fair coin between image and mirror."""
    rows, repeats = [3, 11, 21], 500
    generator = torch.Generator().manual_seed(0)
    z = cache.batch(rows * repeats, generator)[0].view(repeats, 3, *cache.shape) / 1.5 + 0.2
    flipped = 0
    for i, row in enumerate(rows):
        means, stds = stored(cache, "mean", row), stored(cache, "std", row)
        # each draw belongs to the variant that makes it likelier
        residuals = (z[:, i, None] - means) / stds
        which = residuals.square().flatten(2).sum(2).argmin(1)
        flipped += int(which.sum())
        e = residuals[torch.arange(repeats), which]
        n = e.numel()
        assert abs(e.mean()) < 5 / math.sqrt(n) and abs(e.var() - 1) < 5 * math.sqrt(2 / n)
        # the mutants: half the noise, or none
        assert abs((e / 2).var() - 1) > 5 * math.sqrt(2 / n)
    assert abs(flipped / (3 * repeats) - 0.5) < 5 * math.sqrt(0.25 / (3 * repeats))


def test_without_a_generator_it_is_the_mean_of_the_image_as_it_is(cache):
    x, labels = cache.batch([21, 0, 7, 7])
    for value, row in zip(x, (21, 0, 7, 7), strict=True):
        assert torch.allclose(value, (stored(cache, "mean", row)[0] - 0.2) * 1.5, atol=1e-6)
    assert labels.tolist() == [1, 0, 0, 0] and x.dtype == torch.float32 and labels.dtype == torch.int64
    assert torch.equal(x, cache.batch(torch.tensor([21, 0, 7, 7]))[0])


def test_a_draw_follows_from_the_generator_alone(cache):
    draws = [cache.batch(range(22), torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_a_resumed_stream_sees_the_draws_of_an_uninterrupted_one(cache):
    first = batches(cache, 6, seed=4)
    whole = [next(first)[0] for _ in range(12)]
    first.close()
    resumed = batches(cache, 6, seed=4, start=30)
    assert all(torch.equal(next(resumed)[0], x) for x in whole[5:])
    resumed.close()
    # every epoch draws anew: no latent is seen twice
    seen = torch.cat(whole).flatten(1)
    assert len(torch.unique(seen, dim=0)) == 72 > len(cache)


@pytest.mark.parametrize("indices", [[], [22], [-1]])
def test_indices_outside_are_refused(cache, indices):
    with pytest.raises(DataError, match="a batch wants indices from 0 to 21"):
        cache.batch(indices)


def test_a_cache_larger_than_memory_is_read_row_by_row(cache, tmp_path):
    """A shard of 64 GiB (a file with a hole) in place of one of a few kilobytes."""
    root = tmp_path / "latents"
    shutil.copytree(cache.root, root)
    rows, row = 2**25, 2 * math.prod(cache.shape)
    entries, end = {}, 0
    for name, dtype, shape, size in (
        ("mean", "F16", [rows, 2, *cache.shape], 2 * row),
        ("std", "F16", [rows, 2, *cache.shape], 2 * row),
        ("labels", "I64", [rows], 8),
    ):
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end := end + rows * size]}
    head = json.dumps(entries).encode()
    with open(shard_path(root, 0), "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + end)
    header = json.loads((root / "latents.json").read_text())
    header["shards"][0] = {"rows": rows, "size": 8 + len(head) + end}
    (root / "latents.json").write_text(json.dumps(header))
    assert end > 64 * 2**30
    before = _resident()
    large = LatentCache(root)
    x, labels = large.batch(torch.linspace(0, rows + 16, 64).long(), torch.Generator().manual_seed(0))
    assert len(large) == rows + 17 and x.shape == (64, *cache.shape) and labels[-1] == 1
    assert _resident() - before < 64 * 2**20


def _resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_stored_as_float16_the_rounding_is_small(cache, folder, tmp_path):
    exact = encode(folder, tmp_path / "exact", load_vae(cache.latents.vae), Encoding(16, True, "auto", 5, "float32", 8))
    a, b = cache.batch(range(22))[0], exact.batch(range(22))[0]
    assert 0 < (a - b).abs().max() < 5e-4 * b.abs().max()


def wide(folder, tmp_path, scale):
    """A cache of latents with standard deviation 5, as Stable Diffusion's, whose VAE has the scale 1 / 5 of its own."""
    pytest.importorskip("diffusers")
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(kl_vae(tmp_path / "vae", scaling_factor=0.2), low_cpu_mem_usage=False)
    model.quant_conv.bias.data[4:] -= 6  # the posterior narrow, as in trained ones
    model.save_pretrained(tmp_path / "vae")
    measured = encode(folder, tmp_path / "first", load_vae(tmp_path / "vae"), Encoding(16, scale="measured"))
    with torch.no_grad():
        for part in model.quant_conv.parameters():
            part[:4] *= 5 / math.sqrt(sum(1 / s**2 for s in measured.latents.scale) / 4)
    model.save_pretrained(tmp_path / "vae")
    return encode(folder, tmp_path / "out", load_vae(tmp_path / "vae"), Encoding(16, scale=scale))


@pytest.mark.parametrize(
    "scale, message",
    [
        ("1", "the VAE's own scale 0.2 was forgotten: they were scaled by 1, 0.[12]"),
        ("0.04", "the VAE's own scale 0.2 was applied twice: they were scaled by 0.04, 0.[12]"),
        ("5", "the VAE's own scale 0.2 was divided by instead of multiplied: they were scaled by 5"),
        ("0.7", r"they were scaled by 0.7 \(given\), the VAE's own scale is 0.2, 0.[12]"),
    ],
)
def test_a_wrong_scale_is_named_with_its_likely_cause(scale, message, folder, tmp_path):
    cache = wide(folder, tmp_path, scale)
    with pytest.raises(DataError) as refused:
        check_scale(cache)
    said = str(refused.value)
    assert f"{cache.root}: the scaled latents have a standard deviation of" in said and "expected about 1" in said
    assert (
        re.search(message, said) and "would fit" in said and "--scale measured (or config) corrects the header" in said
    )


def test_the_right_scale_is_silent(folder, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_scale(wide(folder, tmp_path, "auto"))


@pytest.mark.parametrize(
    "std, message",
    [
        (1 / 0.18215, "the scale 0.18215 of Stable Diffusion 1 and 2 forgotten?"),
        (0.18215, "the scale 0.18215 of Stable Diffusion 1 and 2 applied twice?"),
        (1 / 0.3611, "the scale 0.3611 of FLUX.1 forgotten?"),
        (40.0, "are they scaled?"),
    ],
)
def test_arrays_that_look_like_latents_bring_a_warning(std, message):
    data = Tensors(torch.randn(64, 4, 8, 8) * std)
    with pytest.warns(UserWarning, match="standard deviation of") as caught:
        check_scale(data)
    assert message in str(caught[0].message) and f"Multiply them by {1 / std:.1g}"[:18] in str(caught[0].message)


@pytest.mark.parametrize("data", [torch.randn(64, 4, 8, 8), torch.randn(64, 3, 8, 8) / 5, torch.randn(64, 4) * 9])
def test_scaled_latents_images_and_vectors_are_silent(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_scale(Tensors(data.clamp(-1, 1) if data.shape[1:2] == (3,) else data))
