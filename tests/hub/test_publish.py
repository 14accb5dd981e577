"""What push writes loads elsewhere: by the library, from the cache of the hub, and by diffusers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import meanflow as mf
from autoencoders import kl_vae, tiny_vae
from meanflow.cli import main

ROOT = Path(__file__).parents[2]
SEEDS = "0-9"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("publish") / "digits"
    assert main(["train", "digits", "--images", "1280", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def published(run):
    out = run.parent / "published"
    assert main(["push", str(run), "me/digits", "--licence", "mit", "--folder", str(out), "--diffusers"]) == 0
    return out


def python(code, folder, **environment):
    """Output of a fresh process; fails with its errors."""
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def drawn(net):
    torch.set_num_threads(1)
    return mf.sample(net, mf.noise_from_seeds(range(10), net.shape), torch.arange(10))


def test_the_folder_holds_numbers_and_words_only(published):
    names = sorted(str(p.relative_to(published)) for p in published.rglob("*") if p.is_file())
    assert names == [
        "README.md", "config.json", "grid.png", "model.safetensors", "model_index.json", "net/config.json",
        "net/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    assert not list(published.parent.glob(".*.tmp"))


def test_a_fresh_process_loads_the_same_network(run, published, tmp_path):
    shutil.copytree(published, tmp_path / "moved")
    python(
        "import torch, meanflow as mf\n"
        "torch.set_num_threads(1)\n"
        "net = mf.load('moved')\n"
        "x = mf.sample(net, mf.noise_from_seeds(range(10), net.shape), torch.arange(10))\n"
        "torch.save(x, 'x.pt')",
        tmp_path,
    )
    net = mf.load(run)
    assert torch.equal(torch.load(tmp_path / "x.pt"), drawn(net))
    back = mf.load(published)
    assert back.guidance == net.guidance and back.null == 10


def test_from_the_hub_by_name(run, published, tmp_path):
    """As after a download: the layout of the hub's cache, and no connection."""
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--me--digits"
    shutil.copytree(published, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    offline = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    said = python("import meanflow as mf; print(type(mf.load('me/digits')).__name__)", tmp_path, **offline)
    assert said == "DiT\n"
    code = (
        "import sys; from meanflow.cli import main\n"
        "sys.exit(main(['sample', 'me/digits', '--seeds', '0-9', '--out', 'x.npz']))"
    )
    python(code, tmp_path, **offline)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npz")["seeds"], range(10))
    # Nothing is written into a folder of that name, behind which the model could not be found any more.
    code = (
        "from meanflow.cli import main\n"
        "assert main(['sample', 'me/digits', '--seeds', '0', '--times', 'auto', '--out', 'y.npz']) == 0\n"
        "assert main(['diagnose', 'me/digits']) == 2\n"
    )
    python(code, tmp_path, **offline)
    assert (tmp_path / "y.npz").is_file() and not (tmp_path / "me").exists()


def test_what_is_neither_here_nor_on_the_hub(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="me/nothing"):
        mf.load("me/nothing")
    # A folder that is here is not looked for elsewhere.
    (tmp_path / "runs").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no run"):
        mf.load("runs/digitz")
    assert main(["sample", "runs/digitz"]) == 2
    assert "runs/digitz holds no run" in capsys.readouterr().err


def test_diffusers_draws_the_same_pictures(run, published, tmp_path):
    pytest.importorskip("diffusers", reason="diffusers is not installed (extra latent)")
    python(
        "import torch, numpy as np, meanflow as mf\n"
        "from meanflow.hub.pipeline import MeanFlowPipeline\n"
        f"pipe = MeanFlowPipeline.from_pretrained({str(published)!r})\n"
        "noise = mf.noise_from_seeds(range(10), (1, 8, 8))\n"
        "images = pipe(class_labels=list(range(10)), latents=noise).images\n"
        "np.save('one.npy', np.stack([np.asarray(i) for i in images]))\n"
        "np.save('four.npy', pipe(3, latents=noise, num_inference_steps=4, output_type='pt').images)\n"
        "a, b = (pipe(3, generator=torch.Generator().manual_seed(s), output_type='np').images for s in (0, 1))\n"
        "assert a.shape == (1, 8, 8, 1) and abs(a - b).max() > 0",
        tmp_path,
    )
    net = mf.load(run)
    wanted = mf.evaluation.pictures.to_uint8(drawn(net))[:, 0].numpy().astype(int)
    assert abs(np.load(tmp_path / "one.npy").astype(int) - wanted).max() <= 1
    four = mf.sample(net, mf.noise_from_seeds(range(10), (1, 8, 8)), torch.full((10,), 3), steps=4)
    wanted = mf.evaluation.pictures.to_uint8(four).numpy().astype(float)
    assert abs(np.load(tmp_path / "four.npy") * 255 - wanted).max() <= 1.001


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)):
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


def trained_on_latents(photos, vae, folder):
    latents, run = folder / "latents", folder / "run"
    assert main(["encode", str(photos), str(latents), "--vae", str(vae), "--size", "32", "--scale", "measured"]) == 0
    assert main(["train", str(latents), "--images", "16", "--batch", "16", "--out", str(run)]) == 0
    return run


def test_a_pipeline_holds_the_autoencoder_of_a_latent_run(photos, tmp_path):
    pytest.importorskip("diffusers", reason="diffusers is not installed (extra latent)")
    run = trained_on_latents(photos, kl_vae(tmp_path / "vae"), tmp_path)
    out = tmp_path / "out"
    assert main(["push", str(run), "me/x", "--licence", "mit", "--folder", str(out), "--diffusers"]) == 0
    from meanflow.hub.pipeline import MeanFlowPipeline

    shutil.rmtree(tmp_path / "vae")  # the pipeline has its own
    pipeline = MeanFlowPipeline.from_pretrained(out)
    noise = mf.noise_from_seeds(range(3), pipeline.net.net.shape)
    images = pipeline(latents=noise, output_type="pt").images
    assert images.shape == (3, 3, 32, 32)
    latents = pipeline(latents=noise, output_type="latent").images
    contract = mf.load(run).latents
    wanted = pipeline.vae.decode(contract.denormalise(latents)).sample.clamp(-1, 1)
    assert ((wanted + 1) / 2 - images).abs().max() <= 1 / 255


def test_export_writes_a_pipeline_alone(run, published, tmp_path, capsys):
    pytest.importorskip("diffusers", reason="diffusers is not installed (extra latent)")
    out = tmp_path / "pipeline"
    assert main(["export", str(run), str(out), "--diffusers"]) == 0
    for name in ("model_index.json", "net/config.json", "net/diffusion_pytorch_model.safetensors"):
        assert (out / name).read_bytes() == (published / name).read_bytes()
    assert sorted(p.name for p in out.iterdir()) == ["model_index.json", "net"]
    assert main(["export", str(run), str(tmp_path / "x"), "--diffusers", "--steps", "4"]) == 2
    assert "--diffusers takes --ema, --raw and --vae" in capsys.readouterr().err


def test_an_autoencoder_that_is_none_of_diffusers(photos, tmp_path, capsys):
    pytest.importorskip("diffusers", reason="diffusers is not installed (extra latent)")
    run = trained_on_latents(photos, tiny_vae(tmp_path / "vae"), tmp_path)
    words = ["push", str(run), "me/x", "--licence", "mit", "--folder", str(tmp_path / "out")]
    assert main([*words, "--diffusers"]) == 2
    assert "TinyAutoencoder is none of diffusers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
    assert main(words) == 0
    assert mf.load(tmp_path / "out").latents == mf.load(run).latents


def test_the_card(published):
    text = (published / "README.md").read_text(encoding="utf-8")
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (extra hub)")
    card = hub.ModelCard(text)
    assert card.data.license == "mit" and card.data.library_name == "meanflow"
    assert 'mf.load("me/digits")' in text
    assert "590,500 parameters" in text and "| images seen | 1,280 |" in text and "EMA 0.999" in text
    assert "Not judged" in text
    assert "](grid.png)" in text


def test_the_card_takes_the_report(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "report").mkdir()
    (tmp_path / "run" / "report" / "report.md").write_text("# digits\n\nFD-pixels-2k 1.2 [protocol digits v1]\n")
    assert main(["push", str(tmp_path / "run"), "a/b", "--licence", "mit", "--folder", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "## Quality\n\nFD-pixels-2k 1.2 [protocol digits v1]" in text and "Not judged" not in text


def test_what_is_published_can_be_published_again(published, tmp_path):
    assert main(["push", str(published), "you/copy", "--licence", "mit", "--folder", str(tmp_path / "again")]) == 0
    assert torch.equal(drawn(mf.load(tmp_path / "again")), drawn(mf.load(published)))


def test_wrong_requests(run, published, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    assert main(["push", str(run), "me/x", "--licence", "mit", "--folder", str(tmp_path / "full")]) == 2
    assert "not empty" in capsys.readouterr().err and (tmp_path / "full" / "file").read_text() == "mine"
    assert main(["push", str(run), "nobody", "--licence", "mit"]) == 2
    assert 'called "user/name"' in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"published with EMA 0\.999; raw is not in it"):
        mf.load(published, raw=True)
    assert torch.equal(drawn(mf.load(published, ema=0.999)), drawn(mf.load(run)))


def test_no_hub_to_be_reached(run, tmp_path):
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "meanflow.cli", "push", str(run), "me/x", "--licence", "mit"],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_x"},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "the hub did not take me/x" in done.stderr and "Traceback" not in done.stderr


def test_damaged_weights_are_said(published, tmp_path):
    shutil.copytree(published, tmp_path / "x")
    file = tmp_path / "x" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        mf.load(tmp_path / "x")


def test_class_names_are_in_the_record_and_older_runs_go_on(tmp_path):
    data = mf.data.Tensors(torch.randn(40, 2), torch.arange(40) % 2, class_names=["left", "right"])
    net = mf.nets.MLP(shape=(2,), width=8, depth=1, classes=2)
    mf.fit(mf.MeanFlow(net), data, out=tmp_path / "run", images=20, batch=10, loggers=())
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config.pop("conditions")["label"]["names"] == ["left", "right"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    mf.fit(mf.MeanFlow(net), data, out=tmp_path / "run", images=40, batch=10, loggers=())
