"""A run starts from its own source of noise, whoever draws from it."""

import pytest
import torch

import meanflow as mf
from meanflow.cli import main
from meanflow.core import noise_for, noise_from_seeds
from meanflow.data.files import read_npz
from meanflow.evaluation.judge import draw_rows
from meanflow.evaluation.one_call import drawn
from meanflow.export import export_field
from meanflow.hub.folder import write_folder

SOURCE = mf.UniformSource(-1.0, 1.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "uniform"
    net = mf.nets.DiT((1, 8, 8), patch=4, width=16, depth=1, heads=2, classes=10)
    mf.fit(mf.MeanFlow(net, source=SOURCE), mf.data.digits(), out=out, images=64, batch=64)
    return out


def test_samples_of_all_kinds_start_from_the_source_of_the_run(run):
    net = mf.load(run)
    wanted = noise_from_seeds(range(5, 9), net.shape, source=SOURCE)
    assert wanted.abs().max() <= 1 and torch.equal(noise_for(net, range(5, 9)), wanted)
    assert torch.equal(drawn(net, 4, 5)[0], wanted)
    labels = torch.arange(4)
    got = draw_rows(net, range(4), labels, steps=1, first_seed=5)
    assert torch.equal(got, mf.sample(net, wanted, labels))


def test_what_is_shipped_says_or_refuses_it(run, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    about = export_field(run, tmp_path / "field.pt2").about
    assert about["noise"] == f"of the run's own source: {SOURCE}"
    write_folder(run, tmp_path / "model", name="me/uniform", licence="mit")
    assert "mf.core.noise_for(net, range(8))" in (tmp_path / "model" / "README.md").read_text()
    assert "images seen | 64" in (tmp_path / "model" / "README.md").read_text()
    pytest.importorskip("diffusers")
    assert main(["export", str(run), str(tmp_path / "pipeline"), "--diffusers"]) == 2
    assert "starts from standard normal noise" in capsys.readouterr().err


def test_a_source_that_only_the_user_has_is_asked_for(tmp_path):
    net = mf.nets.MLP((2,), width=8, depth=1)
    source = mf.RowSource(torch.randn(4, 2))
    mf.fit(mf.MeanFlow(net, source=source), torch.randn(8, 2), out=tmp_path / "rows", images=8, batch=8)
    loaded = mf.load(tmp_path / "rows")
    for draw in (lambda: noise_for(loaded, [0]), lambda: drawn(loaded, 2, 0)):
        with pytest.raises(ValueError, match="the source RowSource, so samples start from what only you have"):
            draw()


@pytest.mark.parametrize("content", [b"PK\x03\x04 cut off", b"\x93NUMPY\x01\x00", b""])
def test_a_damaged_archive_of_samples_is_named(content, tmp_path, capsys):
    file = tmp_path / "x.npz"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz cannot be read as an \.npz of plain numbers"):
        read_npz(file)
    assert main(["evaluate", str(file), "--protocol", "digits"]) == 2
    assert "cannot be read as an .npz" in capsys.readouterr().err
