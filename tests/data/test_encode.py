"""Encoding as it happens: interrupted, shared by processes, damaged afterwards."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from autoencoders import kl_vae, photos, tiny_vae
from meanflow.data import DataError, Encoding, LatentCache, encode, load_vae, open_data, round_trip
from meanflow.data.crop import adm_crop

HOW = Encoding(size=16, shard_size=5, batch=2, dtype="float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_vae(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def kl(tmp_path_factory):
    pytest.importorskip("diffusers")
    return load_vae(kl_vae(tmp_path_factory.mktemp("kl")))


@pytest.fixture(scope="module")
def cache(folder, kl, tmp_path_factory):
    return encode(folder, tmp_path_factory.mktemp("cache") / "latents", kl, HOW)


def square(file):
    pixels = np.asarray(adm_crop(Image.open(file).convert("RGB"), 16))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def shards(out):
    return [load_file(file) for file in sorted((out / "shards").glob("*.safetensors"))]


def contents(out):
    return {file.name: file.read_bytes() for file in sorted((out / "shards").iterdir())}


def test_shards_hold_the_posterior_of_every_image_and_of_its_mirror(cache, folder, kl):
    files = sorted(folder.rglob("*.png"), key=lambda file: file.relative_to(folder).as_posix())
    x = torch.stack([square(file) for file in files])
    stored = {name: torch.cat([shard[name] for shard in shards(cache.root)]) for name in ("mean", "std", "labels")}
    assert stored["mean"].shape == (22, 2, 4, 8, 8) and len(shards(cache.root)) == 5
    for place, variant in enumerate((x, x.flip(-1))):
        mean, std = kl.encode(variant)
        assert torch.allclose(stored["mean"][:, place], mean, atol=1e-5)
        assert torch.allclose(stored["std"][:, place], std, atol=1e-5)
    # the mutant: mirrored latents are not the latents of the mirrored image
    assert not torch.allclose(stored["mean"][:, 0].flip(-1), stored["mean"][:, 1], atol=1e-2)
    assert stored["labels"].tolist() == [0] * 11 + [1] * 11 and cache.class_names == ("cats", "dogs")


def test_the_header_measures_what_a_network_will_get(cache):
    """Against 4,000 draws of every latent, and against the variance of the means alone, which is too little."""
    assert (cache.latents.scaled_by, cache.latents.scale) == ("config", (0.18215,))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([cache.batch(range(22), generator)[0] for _ in range(400)]).double()
    mean, std = drawn.mean((0, 2, 3)), drawn.std((0, 2, 3))
    assert torch.allclose(torch.tensor(cache.latents.mean).double(), mean, atol=5e-3)
    assert torch.allclose(torch.tensor(cache.latents.std).double(), std, rtol=2e-2)
    means = torch.cat([shard["mean"] for shard in shards(cache.root)]).double() * 0.18215
    assert not torch.allclose(means.std((0, 1, 3, 4)), std, rtol=0.1)


def test_measured_scale_gives_every_channel_mean_0_and_std_1(folder, tiny, tmp_path):
    cache = encode(folder, tmp_path / "out", load_vae(tiny), HOW)
    assert cache.latents.scaled_by == "measured" and not cache.latents.posterior
    both = torch.cat([shard["mean"] for shard in shards(cache.root)])
    scaled = cache.latents.normalise(both)
    assert torch.allclose(scaled.mean((0, 1, 3, 4)), torch.zeros(4), atol=1e-5)
    assert torch.allclose(scaled.std((0, 1, 3, 4), correction=0), torch.ones(4), atol=1e-5)
    assert "std" not in shards(cache.root)[0]


def test_another_scale_changes_the_header_alone(folder, tiny, tmp_path):
    vae, out = load_vae(tiny), tmp_path / "out"
    before = encode(folder, out, vae, HOW)
    files = contents(out)
    times = [file.stat().st_mtime_ns for file in sorted((out / "shards").iterdir())]
    after = encode(folder, out, vae, replace(HOW, scale="0.5", batch=3))
    assert after.latents.scale == (0.5,) and after.latents.scaled_by == "given"
    assert times == [file.stat().st_mtime_ns for file in sorted((out / "shards").iterdir())] and files == contents(out)
    assert before.description()["fingerprint"] == after.description()["fingerprint"]


def command(folder, out, tiny, *words):
    return [sys.executable, "-m", "meanflow.cli", "encode", folder, out, "--vae", tiny, *words]


def started(words, **environment):
    return subprocess.Popen(
        list(map(str, words)),
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process):
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out, errors


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Enough images that a process can be killed among them."""
    return photos(tmp_path_factory.mktemp("many"), 60)


WORDS = ["--size", "64", "--shard-size", "4", "--batch", "2"]


@pytest.fixture(scope="module")
def uninterrupted(many, tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "latents"
    finished(started(command(many, out, tiny, *WORDS)))
    return out


def test_a_killed_encode_goes_on_and_ends_the_same(many, tiny, uninterrupted, tmp_path):
    """kill -9 of a real process among the shards, a torn file left behind, then the same command again."""
    out = tmp_path / "latents"
    process = started(command(many, out, tiny, *WORDS))
    deadline = time.time() + 120
    while not list(out.glob("shards/[0-9]*.json")):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = sorted(file.name for file in (out / "shards").glob("[0-9]*.json"))
    assert 0 < len(there) < 15 and not (out / "latents.json").exists()
    with pytest.raises(DataError, match=r"encoding is not finished \(\d+ of 15 .*: meanflow encode .*--size 64"):
        open_data(out)
    (out / "shards" / ".000014.tmp.safetensors").write_bytes(b"torn")
    kept = (out / "shards" / there[0]).stat().st_mtime_ns
    _, errors = finished(started(command(many, out, tiny, *WORDS)))
    assert f"{15 - len(there)} of {15 - len(there)} shards encoded" in errors
    assert (out / "shards" / there[0]).stat().st_mtime_ns == kept
    assert contents(out) == contents(uninterrupted)  # and nothing torn is left
    assert len(open_data(out)) == 60


def test_two_processes_share_the_shards_as_torchrun_starts_them(many, tiny, uninterrupted, tmp_path):
    out = tmp_path / "latents"
    ranks = [
        started(command(many, out, tiny, *WORDS), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
        for rank in range(2)
    ]
    texts = [finished(process) for process in ranks]
    assert "8 of 8 shards" in texts[0][1] and "7 of 7 shards" in texts[1][1]
    assert any("Next: meanflow train" in text for text, _ in texts)
    assert contents(out) == contents(uninterrupted)
    headers = [json.loads((folder / "latents.json").read_text()) for folder in (out, uninterrupted)]
    assert all(header.pop("command") for header in headers) and headers[0] == headers[1]


def test_a_rank_that_is_early_leaves_the_header_to_the_last(folder, tiny, tmp_path):
    vae, out = load_vae(tiny), tmp_path / "out"
    assert encode(folder, out, vae, HOW, rank=1, world=2) is None and not (out / "latents.json").exists()
    assert len(encode(folder, out, vae, HOW, rank=0, world=2)) == 22


def test_damaged_shards_are_named_by_the_loader_and_encoded_anew(folder, tiny, tmp_path):
    vae, out = load_vae(tiny), tmp_path / "out"
    encode(folder, out, vae, HOW)
    whole, shard = contents(out), out / "shards" / "000002.safetensors"
    for damage in (lambda b: b[:-100], lambda b: b[:-1] + bytes([b[-1] ^ 1])):
        shard.write_bytes(damage(whole[shard.name]))
        if shard.stat().st_size != len(whole[shard.name]):
            message = (
                rf"000002.safetensors: has [\d,]+ bytes instead of [\d,]+; .*same command: meanflow encode {folder}"
            )
            with pytest.raises(DataError, match=message):
                LatentCache(out)
        assert len(encode(folder, out, vae, HOW)) == 22
        assert contents(out) == whole
    shard.unlink()
    with pytest.raises(DataError, match=r"000002.safetensors: is missing"):
        LatentCache(out)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 9}', '{"format": 1}'])
def test_a_damaged_header_is_named(text, cache, tmp_path):
    (tmp_path / "latents.json").write_text(text)
    with pytest.raises(DataError, match=r"latents.json: "):
        open_data(tmp_path)


def test_another_encode_in_the_folder_says_what_differs(cache, folder, tiny):
    before = contents(cache.root)
    with pytest.raises(DataError, match=r"differs in\n  vae_fingerprint: .*kl\d* \(\w{12}\) -> .*tiny\d* \(\w{12}\)\n"):
        encode(folder, cache.root, load_vae(tiny), HOW)
    assert contents(cache.root) == before


def test_another_size_or_other_images_in_the_folder_are_refused(cache, folder, kl, tmp_path):
    with pytest.raises(DataError, match=r"differs in\n  size: 16 -> 32\n"):
        encode(folder, cache.root, kl, replace(HOW, size=32))
    with pytest.raises(DataError, match=r"images: 22 -> 3\n  files: \w+ -> \w+\n"):
        encode(photos(tmp_path, 3), cache.root, kl, HOW)


def test_broken_images_stop_the_encode_or_are_left_out(tiny, tmp_path):
    folder, vae = photos(tmp_path / "photos", 12), load_vae(tiny)
    (folder / "cats" / "04.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cats/04.png: cannot be read as an image"):
        encode(folder, tmp_path / "out", vae, HOW)
    with pytest.warns(UserWarning, match="1 images are broken and left out, the first: cats/04.png"):
        cache = encode(folder, tmp_path / "out", vae, replace(HOW, skip_broken=True))
    assert len(cache) == 11 == cache.latents.count and cache.skipped == {"cats/04.png"}
    assert cache.batch(range(11))[1].tolist() == [0] * 5 + [1] * 6
    x, _, _ = round_trip(folder, cache, vae, 11)
    assert torch.equal(x[2], square(folder / "cats" / "06.png") * 1)


def test_a_round_trip_is_measured_on_the_stored_latents(cache, folder, kl):
    x, y, psnr = round_trip(folder, cache, kl, 4)
    assert torch.allclose(y, kl.decode(kl.encode(x)[0]), atol=1e-4)
    error = ((x - y).numpy() / 2) ** 2
    assert np.allclose(psnr, [10 * np.log10(1 / e.mean()) for e in error], atol=1e-4)


def test_latents_that_overflow_the_stored_type_are_refused(folder, tmp_path):
    vae = load_vae(tiny_vae(tmp_path / "vae", gain=1e6))
    with pytest.raises(DataError, match=r"cats/00.png: its latents are NaN, Inf or too large for float16"):
        encode(folder, tmp_path / "out", vae, Encoding(16))
    assert len(encode(folder, tmp_path / "wide", vae, Encoding(16, dtype="float32"))) == 22


def test_a_full_disk_is_said_and_leaves_what_was_written(folder, tiny, tmp_path):
    """A real limit on the size of files, above that of the plan and below that of a shard."""
    vae, out = load_vae(tiny), tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
    try:
        with pytest.raises(OSError, match=r"could not write .*000000.safetensors: .*free some space and give the same"):
            encode(folder, out, vae, replace(HOW, size=64))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((out / "shards").iterdir())
    assert len(encode(folder, out, vae, replace(HOW, size=64))) == 22


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 20}, "size must be a multiple of 8, by which the VAE divides it, got 20"),
        ({"size": 0}, "size must be at least 1"),
        ({"dtype": "bfloat16"}, "dtype must be float16 or float32, got 'bfloat16'"),
        ({"scale": "twice"}, "scale must be auto, config, measured or a positive number"),
        ({"scale": "-1"}, "scale must be auto"),
        ({"scale": "config"}, "has no scale in its config; use --scale measured"),
    ],
)
def test_impossible_settings_are_refused(options, message, folder, tiny, tmp_path):
    with pytest.raises(DataError, match=message):
        encode(folder, tmp_path / "out", load_vae(tiny), Encoding(**{"size": 16, **options}))
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_is_left_alone(folder, tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"is not empty \(thesis.tex\) and holds no latents"):
        encode(folder, tmp_path, load_vae(tiny), HOW)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
