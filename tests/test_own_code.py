"""Networks and data of the user's own, named on the command line and from Python."""

import json
import os
import textwrap

import pytest
import torch

import meanflow as mf
from meanflow.cli import main
from meanflow.own import blamed, named
from meanflow.training.run import read_config

FILE = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, shape, classes=None, width=16):
            super().__init__()
            self.table = nn.Embedding((classes or 0) + 1, width)
            self.first, self.last = nn.Linear(shape[0] + 2, width), nn.Linear(width, shape[0])

        def forward(self, z, *, t, r, cond=None):
            h = self.first(torch.cat([z, t[:, None], r[:, None]], 1))
            return self.last(torch.tanh(h if cond is None else h + self.table(cond)))

    def build(shape, classes):
        return Net(shape, classes, width=8)

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, i):
            return torch.full((3,), i / 40) - 0.5, i % 4

    class Short(Net):
        def forward(self, z, *, t, r, cond=None):
            return super().forward(z, t=t, r=r, cond=cond)[:, :2]

    class NoTimes(Net):
        def forward(self, z, t):
            return z

    class Breaks(Net):
        def forward(self, z, *, t, r, cond=None):
            return {}["u"]

    points = torch.linspace(-1, 1, 120).reshape(40, 3)
    number = 3

    def held(split):
        return points[:20] if split == "train" else points[20:]

    def deep(shape, depth):
        pass

    def nothing():
        pass

    def stream():
        while True:
            yield torch.rand(3)
"""
SHORT = ["--images", "64", "--batch", "32", "--recipe", "dit-tiny"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(textwrap.dedent(FILE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_sample_status_and_load_of_own_code(home, capsys):
    train = ["train", "--net", "mine.py:Net", "--data", "mine.py:Data", *SHORT, "--out", "run"]
    assert main(train) == 0
    config = read_config(home / "run")
    assert config["code"]["net"]["name"] == "Net" and config["code"]["data"]["path"] == str(home / "mine.py")
    assert config["data"]["classes"] == 4  # nobody said so: it was looked for
    assert "meanflow sample run --net mine.py:Net" in capsys.readouterr().out

    assert main(["sample", "run"]) == 2
    assert f"--net {home / 'mine.py'}:Net" in capsys.readouterr().err
    assert main(["sample", "run", "--net", "mine.py:Net", "--classes", "3,1", "--out", "x.npz"]) == 0
    assert main(["status", "run"]) == 0
    assert "own net     Net in" in capsys.readouterr().out

    module = named("mine.py:Net").value
    by_name, by_hand = mf.load("run", net="mine.py:Net"), mf.load("run", net=module((3,), 4))
    assert all(torch.equal(a, b) for a, b in zip(by_name.parameters(), by_hand.parameters(), strict=True))
    with pytest.raises(ValueError, match="no code is executed unasked"):
        mf.load("run")
    with pytest.raises(ValueError, match="do not fit Net"):
        mf.load("run", net=module((3,), 9))


def test_nothing_is_executed_unasked(home):
    """Loading, sampling and asking for the status of a run leave its code alone: the file would leave a trace."""
    assert main(["train", "--net", "mine.py:build", "--data", "mine.py:points", *SHORT, "--out", "run"]) == 0
    (home / "mine.py").write_text("open('trace', 'w')\n")
    assert main(["status", "run"]) == 0
    assert main(["sample", "run"]) == 2
    with pytest.raises(ValueError):
        mf.load("run")
    assert not (home / "trace").exists()
    assert main(["sample", "run", "--net", "mine.py:build"]) == 2
    assert (home / "trace").exists()


def test_changed_code_is_warned_of_and_goes_on(home, capsys):
    words = ["train", "--net", "mine.py:Net", "--data", "mine.py:points", *SHORT, "--out", "run"]
    assert main(words) == 0
    before = read_config(home / "run")["code"]["net"]["sha256"]
    assert main(words) == 0
    assert "is not the one" not in capsys.readouterr().err
    with open("mine.py", "a") as file:
        file.write("# another\n")
    with pytest.warns(UserWarning, match=r"the code of the net, Net in .*mine.py, is not the one that run was trained"):
        mf.load("run", net="mine.py:Net")
    words[words.index("64")] = "128"
    assert main(words) == 0
    now = read_config(home / "run")["code"]["net"]
    assert now["before"] == [before] and now["sha256"] != before


def test_a_class_given_from_python_is_recorded(home):
    net = named("mine.py:Net").value((3,))
    mf.fit(mf.MeanFlow(net), torch.randn(32, 3), out="run", images=32, batch=32)
    assert read_config(home / "run")["code"]["net"]["path"] == str(home / "mine.py")
    mf.fit(mf.MeanFlow(mf.nets.MLP((3,), width=8, depth=1)), torch.randn(32, 3), out="own", images=32, batch=32)
    assert "code" not in read_config(home / "own")


def test_data_of_every_kind(home):
    for name, length in (("held", 20), ("points", 40), ("Data", 40), ("stream", None)):
        out = f"run-{name}"
        assert main(["train", "--net", "mine.py:Net", "--data", f"mine:{name}", *SHORT, "--out", out]) == 0
        assert json.loads((home / out / "config.json").read_text())["data"]["length"] == length


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--net mine.py:Nett --data mine.py:points", "mine.py has no Nett; did you mean Net?"),
        ("--net min.py:Net --data mine.py:points", "there is no file min.py; did you mean mine.py?"),
        ("--net minne:Net --data mine.py:points", "there is no module minne in"),
        ("--net mine.py --data mine.py:points", "as PATH.py:NAME or module:NAME"),
        ("--net mine.py:number --data mine.py:points", "of type int and cannot be called"),
        ("--net mine.py:nothing --data mine.py:points", "a function that returns a module, but it returned NoneType"),
        ("--net mine.py:deep --data mine.py:points", "without a default that nobody can know: depth"),
        ("--net mine.py:Short --data mine.py:points", "shape of z, [2, 3], but returned [2, 2]"),
        ("--net mine.py:NoTimes --data mine.py:points", "must take the call net(z, t=t, r=r, cond=cond)"),
        ("--net mine.py:Breaks --data mine.py:points", " fails: KeyError: 'u'"),
        ("--net mine.py:Net --data mine.py:nothing", "mine.py:nothing: cannot read data from NoneType"),
        ("--net mine.py:Net --data mine.py:pionts", "did you mean points?"),
        ("--net mine.py:Net", "name the data to train on"),
        ("digits --net mine.py:Net --data mine.py:points", "not both"),
        ("digits --net mine.py:Net --net.width 3", "--net.width is a setting of the recipe's network"),
    ],
)
def test_what_is_wrong_is_said_before_a_run_begins(words, message, home, capsys):
    assert main(["train", *words.split(), *SHORT, "--out", "run"]) == 2
    assert message in capsys.readouterr().err
    assert not (home / "run").exists()


def test_errors_beyond_the_users_files_pass_as_they_are(home):
    with pytest.raises(KeyError), blamed([home / "other.py"]):
        raise KeyError("x")
    with pytest.raises(ValueError, match="fails: KeyError"), blamed([__file__]):
        raise KeyError("x")


def test_a_file_is_executed_once_for_network_and_data(home):
    (home / "mine.py").write_text("open('trace', 'a').write('x')\nA = 1\nB = 2\n")
    assert named("mine.py:A").value == 1 and named("mine.py:B").value == 2
    assert (home / "trace").read_text() == "x"
    os.utime(home / "mine.py")
    assert named("mine.py:A").value == 1 and (home / "trace").read_text() == "x"
