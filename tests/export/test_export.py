"""Exported files compute what torch computes, or are not written."""

import numpy as np
import pytest
import torch

import meanflow as mf
from autoencoders import kl_vae, photos
from meanflow.cli import main
from meanflow.export import ExportError, export_decoder, export_field, read_about
from meanflow.export import export as export_run
from meanflow.export.export import _draws, _subject
from meanflow.export.files import exported, verify_onnx, verify_pt2
from meanflow.export.programs import Field, Sampler

onnx = pytest.importorskip("onnx", reason="onnx is not installed (pip install 'meanflow[export]')")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'meanflow[export]')")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install 'meanflow[export]')")


def shaken(net):
    """Weights away from their initial zeros, so that every layer matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in net.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return net


def a_run(folder, net, cond, guidance=None):
    x = torch.rand(16, *net.shape, generator=torch.Generator().manual_seed(2)) * 2 - 1
    mf.fit(
        mf.MeanFlow(shaken(net), guidance=guidance),
        (x, cond) if cond is not None else x,
        out=folder,
        images=8,
        batch=8,
        lr=1e-5,
    )
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    labels = torch.arange(16) % 3
    dropped = mf.Guidance(scale=1.0, drop=0.2)
    return {
        "dit": a_run(home / "dit", mf.nets.DiT((1, 8, 8), patch=4, width=32, depth=1, heads=4, classes=3), labels),
        "unet": a_run(
            home / "unet",
            mf.nets.UNet((1, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=(4,), classes=3),
            labels,
        ),
        "mlp": a_run(
            home / "mlp", mf.nets.MLP((2,), width=16, depth=1, condition_features=5), torch.rand(16, 5), dropped
        ),
        "plain": a_run(home / "plain", mf.nets.MLP((2,), width=16, depth=1), None),
    }


def run_onnx(path, **inputs):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(value) for name, value in inputs.items()})[0]


@pytest.mark.parametrize(("name", "steps"), [("dit", 4), ("unet", 1)])
def test_onnx_samples_are_those_of_sample_for_any_batch(runs, tmp_path, name, steps):
    done = export_run(runs[name], tmp_path / "x.onnx", steps=steps)
    net = mf.load(runs[name])
    for batch in (1, 5, 33):
        noise, labels = torch.randn(batch, 1, 8, 8), torch.randint(3, (batch,))
        wanted = mf.sample(net, noise, labels, steps=steps)
        assert wanted.std() > 0.1
        assert np.abs(run_onnx(done.file, noise=noise, labels=labels) - wanted.numpy()).max() < 1e-4
    assert set(done.differences) == {1, 7} and not list(tmp_path.glob(".*"))


def test_own_times_vectors_and_guidance_as_input(runs, tmp_path):
    done = export_run(runs["mlp"], tmp_path / "x.onnx", times=[1, 0.3, 0], guidance="input")
    net, noise, cond = mf.load(runs["mlp"]), torch.randn(3, 2), torch.rand(3, 5)
    for scale in (1.0, 3.0):
        wanted = mf.sample(net, noise, cond, times=[1, 0.3, 0], guidance=scale)
        got = run_onnx(done.file, noise=noise, condition=cond, guidance=np.float32(scale))
        assert np.abs(got - wanted.numpy()).max() < 1e-4


def test_pt2_with_half_the_bytes_says_what_it_is(runs, tmp_path):
    full = export_run(runs["dit"], tmp_path / "full.pt2", licence="CC0-1.0")
    half = export_run(runs["dit"], tmp_path / "half.pt2", weights="fp16", steps=4)
    assert half.differences[7] < 1e-4
    about = read_about(half.file)
    assert (about["shape"], about["classes"], about["times"]) == ([1, 8, 8], 3, [1.0, 0.75, 0.5, 0.25, 0.0])
    assert read_about(full.file)["licence"] == "CC0-1.0" and about["inputs"]["labels"]["type"] == "int64"
    noise, labels = torch.randn(9, 1, 8, 8), torch.randint(3, (9,))
    got = torch.export.load(full.file).module()(noise, labels)
    assert torch.allclose(got, mf.sample(mf.load(runs["dit"]), noise, labels), atol=1e-5)


def test_half_weights_in_onnx_are_smaller_and_near(runs, tmp_path):
    full = export_field(runs["dit"], tmp_path / "full.onnx")
    half = export_field(runs["dit"], tmp_path / "half.onnx", weights="fp16")
    assert half.size < 0.75 * full.size
    z, t, labels = torch.randn(4, 1, 8, 8), torch.ones(4), torch.arange(4) % 3
    a, b = (run_onnx(e.file, z=z, t=t, r=0 * t, labels=labels) for e in (full, half))
    assert 0 < np.abs(a - b).max() < 2e-2 * np.abs(a).max()
    about = read_about(half.file)
    assert about["kind"] == "field" and about["weights"] == "fp16"


@pytest.fixture(scope="module")
def sampler(runs):
    """Program, module and inputs of the DiT run with one call."""
    subject = _subject(runs["dit"], "fp32", None, None, False, None, None, None, "none")
    module = Sampler(Field(subject.net), [1.0, 0.0], torch.nn.Identity()).eval()
    draw = _draws(subject, ("noise",), False)
    return exported(module, draw(3)), module, draw


def test_a_sabotaged_onnx_file_is_refused_with_its_node(sampler, tmp_path):
    program, module, draw = sampler
    made = torch.onnx.export(program, dynamo=True, external_data=False, input_names=["noise", "labels"], verbose=False)
    file = tmp_path / "x.onnx"
    made.save(file, external_data=False)
    assert verify_onnx(file, module, made.exported_program, iter([draw(7)]))[7] < 1e-5
    model = onnx.load(file)
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    softmax.op_type = "Identity"
    del softmax.attribute[:]
    onnx.save(model, file)
    with pytest.raises(ExportError, match="first node that differs is") as error:
        verify_onnx(file, module, made.exported_program, iter([draw(1)]))
    blamed = str(error.value).split("differs is ")[1].split(" ")[0]
    order = [o for node in model.graph.node for o in node.output]
    assert order.index(blamed) >= order.index(softmax.output[0])
    assert order.index(blamed) - order.index(softmax.output[0]) <= 3


def test_a_sabotaged_pt2_file_is_refused_with_its_node(sampler, tmp_path):
    program, module, draw = sampler
    path = tmp_path / "x.pt2"
    bias = module.field.net.blocks[0].up.bias
    right = bias.detach().clone()
    bias.data.add_(1)  # the program has the same weights, so this is what is written
    torch.export.save(program, path)
    bias.data.copy_(right)
    with pytest.raises(ExportError, match=r"first node that differs is linear\w*"):
        verify_pt2(path, module, program, iter([draw(3)]))


def test_latents_come_out_as_bytes_by_the_command(tmp_path, monkeypatch, capsys):
    pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "pets", count=6)
    kl_vae(tmp_path / "vae")
    net = ["--net.width", "16", "--net.depth", "1", "--net.heads", "2", "--net.patch", "4"]
    assert main(["encode", "pets", "latents", "--vae", "vae", "--size", "16", "--scale", "measured"]) == 0
    assert (
        main(["train", "latents", *net, "--images", "16", "--batch", "16", "--recipe", "dit-tiny", "--out", "run"]) == 0
    )
    assert main(["export", "run", "a.onnx", "--decode", "--uint8"]) == 0
    about = read_about("a.onnx")
    assert about["output"] == {"name": "samples", "shape": [3, 16, 16], "type": "uint8"}
    assert about["latents"]["channels"] == 4
    loaded, noise, labels = mf.load("run"), torch.randn(2, 4, 8, 8), torch.tensor([0, 1])
    wanted = loaded.latents.decode(mf.sample(loaded, noise, labels))
    got = run_onnx("a.onnx", noise=noise, labels=labels)
    assert got.dtype == np.uint8
    assert np.abs(got.astype(int) - mf.evaluation.pictures.to_uint8(wanted).numpy().astype(int)).max() <= 1
    assert export_decoder("run", "d.onnx").differences[1] < 1e-4
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x.onx"], "NAME.onnx or NAME.pt2"),
        (["x.onnx", "--steps", "0"], "at least 1"),
        (["x.onnx", "--times", "0,1"], "must decrease"),
        (["x.onnx", "--decode"], "not trained on latents"),
        (["x.onnx", "--guidance", "2"], "needs a condition"),
        (["x.onnx", "--uint8"], "leave it out"),
    ],
)
def test_wrong_use_is_explained(runs, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(runs["plain"]), *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_of_others_is_said_to_be_none_of_ours(tmp_path):
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [value])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="no description by meanflow"):
        read_about(tmp_path / "x.onnx")
