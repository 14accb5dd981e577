"""Sequences of different lengths, and what conditions of a data set are."""

import numpy as np
import pytest
import torch
from torch import nn

import meanflow as mf
from meanflow.cli import main
from meanflow.cli.asking import asked, read_given
from meanflow.data import DataError, Samples, Sequences, Tensors, conditions_of, network_options, open_data
from meanflow.data import save_sequences as save
from meanflow.nets import DiT, build

SHORT = ["--images", "64", "--batch", "32", "--net.width", "16", "--net.depth", "1", "--net.heads", "2"]


def made(n=6):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3 + i, generator=generator) for i in range(n)]


def test_batches_are_padded_with_zeros_and_say_so():
    items = made()
    data = Sequences(items, torch.arange(6) % 3)
    assert data.shape == (2, 8) and data.classes == 3 and len(data) == 6
    x, cond = data.batch([5, 0, 2])
    for row, i in enumerate([5, 0, 2]):
        n = 3 + i
        assert torch.equal(x[row, :, :n], items[i]) and not x[row, :, n:].any()
        assert cond["mask"][row].tolist() == [True] * n + [False] * (8 - n) and int(cond["label"][row]) == i % 3
    assert data.description()["lengths"] == [3, 8]


def test_a_list_is_what_its_parts_behind_one_another_are(tmp_path):
    items = made()
    data = open_data((items, torch.arange(6) % 3))
    joined = Sequences(torch.cat([x.T for x in items]), torch.arange(6) % 3, lengths=torch.arange(3, 9))
    read = open_data(save(tmp_path / "s.npz", items, torch.arange(6) % 3))
    every = [d.batch(range(6)) for d in (data, joined, read)]
    for x, cond in every[1:]:
        assert torch.equal(x, every[0][0]) and all(torch.equal(cond[k], every[0][1][k]) for k in cond)
    assert data.description()["fingerprint"] == read.description()["fingerprint"]
    other = Sequences([*items[:5], items[5] + 1], torch.arange(6) % 3)
    assert other.description()["fingerprint"] != data.description()["fingerprint"]
    assert open_data(items).batch([0])[1].keys() == {"mask"}
    assert Sequences([x[0] for x in items], longest=20).shape == (1, 20)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sequences([]), "wanted a list of sequences"),
        (lambda: Sequences([torch.zeros(2, 3), torch.zeros(1, 3)]), "sequence 1 has 1 channels, the first 2"),
        (lambda: Sequences([torch.zeros(2, 0)]), r"sequence 0 must be floats"),
        (lambda: Sequences([torch.full((2, 3), float("nan"))]), "NaN or Inf"),
        (lambda: Sequences(made(), longest=4), "there is a sequence of 8 steps"),
        (lambda: Sequences(torch.zeros(9, 2), lengths=torch.tensor([4, 4])), "add up to the 9 steps"),
        (lambda: Sequences(torch.zeros(9, 2), lengths=torch.tensor([9, 0])), "at least 1"),
        (lambda: Sequences(torch.zeros(9, 2), lengths=torch.tensor([4.5, 4.5])), "whole lengths"),
        (lambda: Sequences(made(), torch.zeros(5, dtype=torch.long)), "there are 6 samples"),
    ],
)
def test_sequences_that_do_not_fit_are_refused(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_files_that_are_no_sequences_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", sequences=np.zeros((4, 1), np.float32), lengths=np.array([4]), more=np.zeros(1))
    np.savez(tmp_path / "b.npz", sequences=np.array([object()]), lengths=np.array([1]))
    with pytest.raises(DataError, match="wanted sequences, lengths"):
        open_data(tmp_path / "a.npz")
    with pytest.raises(DataError, match="cannot be read as plain numpy arrays"):
        open_data(tmp_path / "b.npz")


def test_conditions_are_described_and_build_networks():
    x = torch.randn(6, 1, 8, 8).clamp(-1, 1)
    cond = {"hair": torch.tensor([0, 1, 2, 0, 1, 2]), "age": torch.tensor([20.0, 30, 40, 20, 30, 40]), "observation": x}
    about = conditions_of(Tensors(x, cond, values={"hair": ("dark", "fair", "red")}))
    assert about["hair"] == {"classes": 3, "names": ["dark", "fair", "red"]}
    assert about["age"]["mean"] == [30.0] and about["age"]["std"][0] == pytest.approx(np.std([20, 30, 40]), rel=1e-6)
    net = DiT((1, 8, 8), patch=4, width=16, depth=1, heads=2, **network_options(about))
    assert net.arguments["observation"] == 1 and net.arguments["attributes"]["hair"] == {"classes": 3}
    again = build("DiT", net.arguments)
    again.load_state_dict(net.state_dict())
    for p in [*net.parameters()]:
        nn.init.normal_(p, std=0.1)
    again.load_state_dict(net.state_dict())
    t = torch.full((6,), 0.5)
    assert torch.equal(net(x, t=t, r=t, cond=cond), again(x, t=t, r=t, cond=cond))
    u = net(x, t=t, r=t, cond=cond)
    for name in ("hair", "age"):
        moved = net(x, t=t, r=t, cond={**cond, name: cond[name].flip(0)})
        assert float((u - moved).abs().max()) > 1e-4
    assert conditions_of(Tensors(x, torch.rand(6, 4))) == {"vector": {"features": 4}}
    assert conditions_of(Tensors(x)) == {}
    assert conditions_of(Samples([(x[0], i % 5) for i in range(9)])) == {"label": {"classes": 5}}
    assert conditions_of(Samples([(x[0], i % 5) for i in range(9)]), scan=False) == {"label": {"classes": None}}


def test_unknown_attributes_are_what_guidance_drops():
    cond = {"hair": torch.tensor([0, 1]), "age": torch.tensor([20.0, 30.0])}
    net = DiT(
        (1, 8, 8), patch=4, width=16, depth=1, heads=2, attributes={"hair": {"classes": 2}, "age": {"features": 1}}
    )
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    none = mf.core.null_like(cond, net.null)
    assert none["hair"].tolist() == [2, 2] and none["age"].isnan().all()
    z, t = torch.randn(2, 1, 8, 8), torch.full((2,), 0.5)
    empty = net(z[:1].expand(2, -1, -1, -1), t=t, r=t, cond=none)
    assert torch.equal(empty[0], empty[1]) and empty.isfinite().all()
    loss = mf.MeanFlow(net, guidance=mf.Guidance(scale=2.0, drop=0.5))(z, cond).loss
    loss.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in net.parameters())


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ({"a": {"b": torch.zeros(4)}}, "a dict of its own"),
        ({"photo": torch.zeros(4, 1, 8, 8)}, "under the name 'observation'"),
        ({"words": torch.zeros(4, 5, dtype=torch.long)}, "take whole numbers"),
        ({"n": torch.tensor([-1, 0, 1, 2])}, "renumber its labels from 0"),
    ],
)
def test_conditions_for_networks_of_ones_own_are_told_apart(cond, message):
    with pytest.raises(DataError, match=message):
        conditions_of(Tensors(torch.zeros(4, 3), cond))


def test_attributes_that_do_not_fit_the_network_are_refused():
    net = DiT(
        (1, 8, 8), patch=4, width=16, depth=1, heads=2, attributes={"hair": {"classes": 2}, "age": {"features": 1}}
    )
    z, t = torch.zeros(2, 1, 8, 8), torch.full((2,), 0.5)
    hair, age = torch.tensor([0, 1]), torch.tensor([20.0, 30.0])
    for cond, message in (
        (hair, "needs a dict with age, hair as cond, got Tensor"),
        ({"hair": hair}, "got hair"),
        ({"hair": age, "age": age}, "must be whole numbers"),
        ({"hair": hair, "age": hair}, "must be floats"),
    ):
        with pytest.raises(ValueError, match=message):
            net(z, t=t, r=t, cond=cond)
    with pytest.raises(ValueError, match="one of classes, condition_features and attributes"):
        DiT((1, 8, 8), classes=3, attributes={"a": {"classes": 2}})
    with pytest.raises(ValueError, match=r"\{\"classes\": n\} or"):
        DiT((1, 8, 8), attributes={"a": {"size": 2}})


ABOUT = {
    "hair": {"classes": 3, "names": ["dark", "fair", "red"]},
    "age": {"features": 1},
    "mask": {"longest": 8},
}


def test_conditions_are_asked_for_by_name():
    cond = asked(ABOUT, {}, ("hair=red,dark", "age=20"), "3-5", None, 4, None)
    assert cond["hair"].tolist() == [2, 0, 2, 0] and cond["age"].tolist() == [20.0] * 4
    assert cond["mask"].sum(1).tolist() == [3, 4, 5, 3]
    assert asked({"vector": {"features": 2}}, {}, ("1,2",), None, None, 3, None).tolist() == [[1.0, 2.0]] * 3
    assert asked({"label": {"classes": 4}}, {}, (), None, [3, 1], 2, None).tolist() == [3, 1]
    null = {"hair": 3, "age": None}
    none = asked(ABOUT, {}, (), None, None, 2, null)
    assert none["hair"].tolist() == [3, 3] and none["age"].isnan().all() and none["mask"].all()
    given = {"hair": torch.tensor([1, 1, 1])}
    assert asked({"hair": ABOUT["hair"]}, given, (), None, None, 2, None)["hair"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("words", "lengths", "message"),
    [
        ((), None, "needs --cond hair=... age=...; its conditions are hair: dark, fair, red; age: 1 number"),
        (("hair=red",), None, "needs --cond age="),
        (("hair=rad", "age=3"), None, "did you mean red?"),
        (("hair=7", "age=3"), None, "no hair '7'"),
        (("hiar=red", "age=3"), None, "did you mean hair?"),
        (("red",), None, "takes NAME=VALUE"),
        (("hair=red", "age=old"), None, "takes numbers"),
        (("hair=red", "age=3"), "9", "from 1 to 8"),
    ],
)
def test_what_a_run_does_not_know_is_refused(words, lengths, message):
    with pytest.raises(ValueError) as error:
        asked(ABOUT, {}, words, lengths, None, 2, None)
    assert message in str(error.value)


def test_given_files_are_checked(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2)), y=np.zeros(4))
    np.savez(tmp_path / "b.npz", x=np.array([object()]))
    with pytest.raises(ValueError, match="one row a sample"):
        read_given(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"cannot be read as an \.npz"):
        read_given(tmp_path / "b.npz")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_given(tmp_path / "c.npz")


def test_sequences_and_attributes_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save("tones.npz", made(40), torch.arange(40) % 2)
    assert main(["train", "tones.npz", *SHORT, "--out", "tones"]) == 0
    assert "SequenceDiT" in capsys.readouterr().out
    words = ["sample", "tones", "--lengths", "3,5", "--seeds", "0-3", "--classes", "1", "--out", "x.npz"]
    assert main(words) == 0
    found = np.load("x.npz")
    assert found["lengths"].tolist() == [3, 5, 3, 5] and not found["x"][0, :, 3:].any() and found["x"][0, :, 2].any()
    assert main(["train", "tones.npz", "--net.kind", "mlp", *SHORT, "--out", "no"]) == 2
    assert "need a network that looks at it" in capsys.readouterr().err

    rows = [f"{i / 20 - 1},{i % 3 - 1},{'dark' if i % 2 else 'red'},{20 + i}.5" for i in range(40)]
    (tmp_path / "people.csv").write_text("\n".join(["x,y,hair,age", *rows]))
    assert main(["train", "people.csv", "--cond", "hair,age", *SHORT[:6], "--net.depth", "1", "--out", "people"]) == 0
    assert main(["sample", "people", "--out", "p.png"]) == 2
    assert "hair: dark, red; age: 1 number" in capsys.readouterr().err
    assert main(["sample", "people", "--out", "p.png", "--cond", "hair=red", "age=30,40"]) == 0
    assert (tmp_path / "p.png").exists()


def test_runs_on_pairs_start_from_what_is_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    x = torch.rand(40, 2)
    net = mf.nets.MLP((2,), width=8, depth=1, observation=2)
    mf.fit(mf.MeanFlow(net), (x, {"noise": x + 1, "observation": x}), out="run", images=64, batch=32)
    assert main(["sample", "run", "--out", "a.npz"]) == 2
    np.savez("given.npz", observation=np.zeros((3, 2)))
    assert main(["sample", "run", "--given", "given.npz", "--out", "a.npz"]) == 2
    error = capsys.readouterr().err
    assert "needs an observation" in error and "trained on pairs (x, e)" in error
    np.savez("given.npz", observation=np.zeros((3, 2)), noise=np.ones((3, 2)))
    assert main(["sample", "run", "--given", "given.npz", "--out", "a.npz"]) == 0
    drawn = torch.from_numpy(np.load("a.npz")["x"])
    assert torch.allclose(drawn, mf.sample(mf.load("run"), torch.ones(3, 2), {"observation": torch.zeros(3, 2)}))

    words = ["train", "x.npy", *SHORT[:6], "--net.depth", "1", "--objective.source"]
    np.save("x.npy", x.numpy())
    assert main([*words, "uniform(2,3)", "--out", "by-command"]) == 0
    assert mf.load("by-command").source == mf.UniformSource(2.0, 3.0)
    assert main([*words, "normal(2,3)", "--out", "no"]) == 2
    assert "sources are written gaussian(mean,std) or uniform(low,high)" in capsys.readouterr().err
    source = mf.UniformSource(2.0, 3.0)
    mf.fit(mf.MeanFlow(mf.nets.MLP((2,), width=8, depth=1), source=source), x, out="u", images=64, batch=32)
    assert mf.load("u").source == source
    assert main(["sample", "u", "--seeds", "0-3", "--out", "u.npz"]) == 0
    noise = mf.noise_from_seeds(range(4), (2,), source=source)
    assert float(noise.min()) >= 2
    assert torch.allclose(torch.from_numpy(np.load("u.npz")["x"]), mf.sample(mf.load("u"), noise))
    near = lambda x, cond, generator: x + 1  # noqa: E731
    mf.fit(mf.MeanFlow(mf.nets.MLP((2,), width=8, depth=1), source=near), x, out="c", images=64, batch=32)
    assert main(["sample", "c", "--out", "c.npz"]) == 2
    assert "--given FILE.npz with 'noise'" in capsys.readouterr().err


def test_images_changed_at_random_would_leave_their_observation_behind(tmp_path):
    x = torch.randn(8, 1, 8, 8).clamp(-1, 1)
    net = DiT((1, 8, 8), patch=4, width=16, depth=1, heads=2, observation=1)
    with pytest.raises(ValueError, match="not their mask, observation or noise"):
        mf.fit(mf.MeanFlow(net), (x, {"observation": x}), out=tmp_path / "run", images=8, batch=8, augment="flip")
