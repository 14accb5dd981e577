"""Law 5: agreement with the authors' JAX code on recorded draws, through the public classes."""

import json
import shutil

import msgpack
import numpy as np
import pytest
import torch

from meanflow import AdaptiveWeight, Guidance, MeanFlow, load, sample
from meanflow.cli import main
from meanflow.convert import authors_jax, from_run
from meanflow.convert.authors_jax import dit_arguments, dit_state
from meanflow.convert.flax_files import flat, read_tree
from meanflow.nets import DiT
from oracles import relative

CASES = ["no_guidance", "guided_kappa", "guided_omega"]


class Case:
    """One recorded case: network, objective and arrays in our layout."""

    def __init__(self, folder):
        self.settings = json.loads((folder / "case.json").read_text())
        self.arrays = dict(np.load(folder / "case.npz"))
        self.gradients = dit_state(dict(np.load(folder / "grads.npz")))
        parameters = dict(np.load(folder / "params.npz"))
        shape = self.settings["net"]
        self.net = DiT(**dit_arguments(parameters, heads=shape["num_heads"], size=shape["input_size"]))
        self.net.load_state_dict(dit_state(parameters))
        self.labels = self.tensor("y").long()

    def tensor(self, name):
        """An array, images from NHWC to NCHW."""
        value = torch.from_numpy(np.asarray(self.arrays[name]))
        return value.permute(0, 3, 1, 2).contiguous() if value.ndim == 4 else value

    def objective(self, mode="exact"):
        m = self.settings["method"]
        guidance = None
        if m["guidance_eq"]:
            guidance = Guidance.from_paper(m["omega"], m["kappa"], interval=(m["t_start"], m["t_end"]))
        weighting = AdaptiveWeight(p=m["norm_p"], c=m["norm_eps"])
        return MeanFlow(self.net, guidance=guidance, weighting=weighting, derivative=mode)

    def loss(self, mode="exact", **changes):
        dropped = torch.arange(len(self.labels)) < int(self.arrays["num_drop"])
        given = {"noise": self.tensor("e"), "t": self.tensor("t"), "r": self.tensor("r"), "dropped": dropped}
        return self.objective(mode).loss(self.tensor("x"), self.labels, **{**given, **changes})


@pytest.fixture(params=CASES)
def case(request, reference):
    return Case(reference / request.param)


def test_field_and_samples(case):
    z = case.tensor("z")
    u = case.net(z, t=case.tensor("t"), r=case.tensor("r"), cond=case.labels)
    assert relative(u, case.tensor("u")) < 1e-5
    for name, times in (("1", [1, 0]), ("2", [1, 0.5, 0]), ("4", [1, 0.8, 0.55, 0.2, 0])):
        x = sample(case.net, z, case.labels, times=times)
        assert relative(x, case.tensor(f"sample_{name}")) < 1e-5


@pytest.mark.parametrize("mode", ["exact", "no_grad", "finite_difference"])
def test_loss_and_all_gradients(case, mode):
    out = case.loss(mode)
    assert relative(out.loss, case.tensor("loss")) < 1e-5
    assert relative(out.rows["v_error"], case.tensor("v_loss")) < 1e-5
    out.loss.backward()
    names = dict(case.net.named_parameters())
    assert names.keys() == case.gradients.keys()
    for name, parameter in names.items():
        assert relative(parameter.grad, case.gradients[name]) < 1e-4, name


def test_a_dropped_row_that_keeps_its_label_is_noticed(case):
    if int(case.arrays["num_drop"]) == 0:
        pytest.skip("this case dropped no labels")
    rows = slice(0, int(case.arrays["num_drop"]))
    out = case.loss(dropped=torch.zeros(len(case.labels), dtype=torch.bool))
    assert relative(out.rows["v_error"][rows], case.tensor("v_loss")[rows]) > 1e-4


def test_averaging_over_dimensions_instead_of_summing_is_noticed(case):
    """The mistake of several ports: with p = 1 it multiplies c by the number of dimensions."""
    weighting = case.objective().weighting
    squared = case.loss().rows["squared_error"]
    averaged = squared / case.tensor("x")[0].numel()
    wrong = (weighting(averaged) * averaged).mean()
    assert relative(wrong, case.tensor("loss")) > 1e-4


@pytest.fixture
def checkpoint(reference):
    return reference / "guided_kappa" / "checkpoint"


def test_a_checkpoint_becomes_a_run(checkpoint, reference, tmp_path, capsys):
    """The recorded state: average = 0.5 weights + 0.01, step 400."""
    words = ["convert", "authors-jax", str(checkpoint), str(tmp_path / "run"), "--heads", "4", "--size", "8"]
    assert main(words) == 0
    assert "step 400" in capsys.readouterr().out
    wanted = dit_state(dict(np.load(reference / "guided_kappa" / "params.npz")))
    raw, average = (load(tmp_path / "run", raw=raw).state_dict() for raw in (True, False))
    for name, value in wanted.items():
        assert torch.equal(raw[name], value)
        assert torch.allclose(average[name], 0.5 * value + 0.01, atol=1e-7)
    net = load(tmp_path / "run")
    assert net.guidance.scale == 2 and net.guidance.mix == 0.5
    assert main(["sample", str(tmp_path / "run"), "--seeds", "0-3", "--out", str(tmp_path / "x.npz")]) == 0
    assert np.load(tmp_path / "x.npz")["x"].shape == (4, 4, 8, 8)


def test_there_and_back_gives_the_same_file(checkpoint, tmp_path):
    """Weights, average, moments of AdamW and step; the file of the authors' code to the last byte."""
    words = ["convert", "authors-jax", str(checkpoint), str(tmp_path / "run"), "--heads", "4", "--size", "8"]
    assert main(words) == 0
    assert main(["convert", "to-authors-jax", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    before, after = (folder / "checkpoint_400" for folder in (checkpoint, tmp_path / "back"))
    assert (before / "checkpoint").read_bytes() == (after / "checkpoint").read_bytes()
    assert json.loads((before / "_METADATA").read_text()) == json.loads((after / "_METADATA").read_text())


def test_a_run_trained_here_is_written_for_the_authors_code(tmp_path):
    import meanflow as mf

    data = mf.data.Tensors(torch.randn(32, 4, 8, 8), torch.arange(32) % 3, image=False)
    net = DiT((4, 8, 8), patch=2, width=32, depth=1, heads=2, classes=3)
    mf.fit(MeanFlow(net, guidance=Guidance(2.0)), data, out=tmp_path / "run", images=64, batch=16)
    assert main(["convert", "to-authors-jax", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    tree = read_tree(tmp_path / "out")
    raw = load(tmp_path / "run", raw=True).state_dict()
    assert tree["step"] == 4 and int(tree["opt_state"][0]["count"]) == 4
    assert all(torch.equal(value, raw[name]) for name, value in dit_state(flat(tree["params"])).items())
    assert any(np.abs(mu).max() > 0 for mu in flat(tree["opt_state"][0]["mu"]).values())


def test_arrays_above_the_limit_are_split_as_flax_does(tmp_path, monkeypatch):
    from meanflow.convert import flax_files

    monkeypatch.setattr(flax_files, "_CHUNK_BYTES", 64)
    array = np.arange(60, dtype=np.float32).reshape(3, 20)
    flax_files.write_tree({"a": array, "b": [None, array[:, :2]]}, tmp_path, 7)
    stored = msgpack.unpackb((tmp_path / "checkpoint_7" / "checkpoint").read_bytes(), strict_map_key=False)
    assert stored["a"]["__msgpack_chunked_array__"] and len(stored["a"]["chunks"]) == 4
    again = read_tree(tmp_path)
    assert np.array_equal(again["a"], array) and np.array_equal(again["b"][1], array[:, :2])


def test_bfloat16_is_read():
    from meanflow.convert.flax_files import _decoded

    bits = np.array([0x3F80, 0xC020], np.uint16)  # 1 and -2.5
    packed = msgpack.packb(([2], "bfloat16", bits.tobytes()))
    assert _decoded(1, packed).tolist() == [1.0, -2.5]


def changed(change):
    """The recorded checkpoint with its arrays changed."""

    def make(folder, out):
        from meanflow.convert.flax_files import write_tree

        tree = read_tree(folder)
        write_tree(change(tree) or tree, out, 400)

    return make


def without(*path):
    def change(tree):
        *parents, last = path
        room = tree
        for key in parents:
            room = room[key]
        del room[last]

    return changed(change)


def truncated(folder, out):
    shutil.copytree(folder, out)
    file = out / "checkpoint_400" / "checkpoint"
    file.write_bytes(file.read_bytes()[:-1000])


SIZED = ("--heads", "4", "--size", "8")
BAD_CHECKPOINTS = {
    "cut off": (truncated, SIZED, "damaged, cut off"),
    "no checkpoint": (lambda _, out: out.mkdir(), SIZED, "no flax checkpoint there"),
    "no average": (without("ema_params"), SIZED, "ema_params missing, found"),
    "another code": (
        changed(lambda t: {"params": {"conv": np.ones(3)}, "ema_params": {}, "step": 1}),
        SIZED,
        "holds no DiT",
    ),
    "an array missing": (
        without("ema_params", "net", "final_layer", "linear", "_flax_linear", "bias"),
        SIZED,
        "ema_params does not fit.*final_layer/linear/_flax_linear/bias",
    ),
    "another width": (
        changed(lambda t: t["params"]["net"]["t_embedder"]["mlp"]["layers_0"]["_flax_linear"].update(bias=np.ones(63))),
        SIZED,
        r"of shape \[63\].*needs \[64\]",
    ),
    "heads not said": (changed(lambda t: None), ("--size", "8"), "width 64 is of no published size; say --heads"),
    "heads that do not divide": (changed(lambda t: None), ("--heads", "5", "--size", "8"), "heads must divide"),
    "a side that does not divide": (changed(lambda t: None), ("--heads", "4", "--size", "9"), "patch must divide"),
}


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_explained(checkpoint, tmp_path, capsys, name):
    import re

    make, options, message = BAD_CHECKPOINTS[name]
    make(checkpoint, tmp_path / "bad")
    assert main(["convert", "authors-jax", str(tmp_path / "bad"), str(tmp_path / "run"), *options]) == 2
    assert re.search(message, capsys.readouterr().err.replace("\n", " ")) and not (tmp_path / "run").exists()


def test_a_run_without_counterpart_is_not_written(tmp_path):
    import meanflow as mf

    mf.fit(MeanFlow(mf.nets.MLP((2,), width=8, depth=1)), torch.randn(32, 2), out=tmp_path / "run", images=32, batch=16)
    with pytest.raises(ValueError, match="has the DiT only, this run has a MLP"):
        authors_jax.write(from_run(tmp_path / "run"), tmp_path / "out")


def test_a_converted_run_is_judged_like_the_run_it_was(tmp_path, capsys, monkeypatch):
    """Train digits, write them for the authors' code, read that: the same network, the same figures."""
    monkeypatch.chdir(tmp_path)
    tiny = ["--net.width", "32", "--net.depth", "1", "--net.heads", "4", "--images", "640", "--batch", "64"]
    assert main(["train", "digits", "--out", "here", *tiny]) == 0
    assert main(["convert", "to-authors-jax", "here", "theirs"]) == 0
    words = ["--heads", "4", "--size", "8", "--decay", "0.999", "--w", "2", "--k", "0"]
    assert main(["convert", "authors-jax", "theirs", "again", *words]) == 0
    assert main(["evaluate", "again", "--samples", "200"]) == 2
    assert "--protocol digits" in capsys.readouterr().err
    assert (
        main(["evaluate", "here", "again", "--protocol", "digits", "--samples", "200", "--steps", "1", "--json"]) == 0
    )
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert rows[0]["frechet"] == rows[1]["frechet"] and rows[0]["agreement"] == rows[1]["agreement"]


def test_the_protocol_of_digits_is_for_digits_only(checkpoint, tmp_path, capsys):
    words = ["convert", "authors-jax", str(checkpoint), str(tmp_path / "run"), "--heads", "4", "--size", "8"]
    assert main(words) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--protocol", "digits"]) == 2
    assert "samples (1, 8, 8) of 10 classes" in capsys.readouterr().err


def test_converted_latents_become_pictures_with_a_named_vae(checkpoint, tmp_path, capsys):
    """By the scale of the VAE's own config; a VAE with other channels is refused."""
    pytest.importorskip("diffusers")
    from PIL import Image

    from autoencoders import kl_vae, tiny_vae

    words = ["convert", "authors-jax", str(checkpoint), str(tmp_path / "run"), "--heads", "4", "--size", "8"]
    assert main(words) == 0
    vae = str(kl_vae(tmp_path / "vae", scaling_factor=0.18215))
    sample_words = ["sample", str(tmp_path / "run"), "--seeds", "0-3", "--out", str(tmp_path / "x.png"), "--vae"]
    assert main([*sample_words, vae]) == 0
    assert Image.open(tmp_path / "x.png").mode == "RGB"
    assert main([*sample_words, str(tiny_vae(tmp_path / "other", channels=16))]) == 2
    assert "decodes latents [B, 16, h, w], these samples are [4, 4, 8, 8]" in capsys.readouterr().err
