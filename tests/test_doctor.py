"""The examination of networks: sound ones pass, and each way to break one is named."""

import json
import textwrap

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import meanflow as mf
from meanflow.cli import main
from meanflow.nets import MLP, DiT
from oracles import GaussianField

GAUSSIAN = (0.7, 0.5)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Toy(nn.Module):
    """A sound small network for images; the broken ones below change one thing."""

    shape = (2, 4, 4)

    def __init__(self, *between: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.between = nn.Sequential(*between)
        self.last = nn.Conv2d(8, 2, 3, padding=1)

    def times(self, t, r):
        return t, r

    def forward(self, z, *, t, r, cond=None):
        maps = [time.reshape(-1, 1, 1, 1).expand(-1, 1, *z.shape[2:]) for time in self.times(t, r)]
        return self.last(self.between(F.silu(self.first(torch.cat([z, *maps], 1)))))


class OtherShape(Toy):
    def forward(self, z, *, t, r, cond=None):
        return super().forward(z, t=t, r=r).flatten(1)


class OldCall(Toy):
    def forward(self, z, t, h):
        return super().forward(z, t=t, r=t - h)


class NotFinite(Toy):
    def forward(self, z, *, t, r, cond=None):
        return super().forward(z, t=t, r=r) / torch.where(r < 0.2, 0, 1).reshape(-1, 1, 1, 1)


class IgnoresT(Toy):
    def times(self, t, r):
        return r, r


class DetachesR(Toy):
    def times(self, t, r):
        return t, r.detach()


class RoundsT(Toy):
    def times(self, t, r):
        return t.long().to(t.dtype), r


class StepsInT(Toy):
    def times(self, t, r):
        return (10 * t).long().to(t.dtype), r


class PartlyDetached(Toy):
    def times(self, t, r):
        return t + 0.1 * t.detach(), r


class InPlace(Toy):
    def forward(self, z, *, t, r, cond=None):
        u = super().forward(z, t=t, r=r)
        u[:, 0] = 2 * u[:, 0]
        return u


class Warp(nn.Module):
    """An operation of torch without forward-mode derivative, in a leaf."""

    def forward(self, x):
        grid = F.affine_grid(torch.eye(2, 3, dtype=x.dtype).expand(len(x), 2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


class WarpsItself(Toy):
    def forward(self, z, *, t, r, cond=None):
        return Warp.forward(self, super().forward(z, t=t, r=r))


class Square(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


class Custom(nn.Module):
    def forward(self, x):
        return Square.apply(x)


class SquareRight(Square):
    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * tangent * ctx.saved_tensors[0]


class SquareWrong(SquareRight):
    @staticmethod
    def jvp(ctx, tangent):
        return 3 * tangent * ctx.saved_tensors[0]


class CustomRight(nn.Module):
    def forward(self, x):
        return SquareRight.apply(x)


class CustomWrong(nn.Module):
    def forward(self, x):
        return SquareWrong.apply(x)


class LabelOnly(Toy):
    """The layer without forward-mode derivative sees labels alone, so that it is in nobody's way."""

    null = 3

    def __init__(self, *between):
        super().__init__(*between)
        self.table = nn.Embedding(4, 1)
        self.custom = Custom()

    def forward(self, z, *, t, r, cond=None):
        return super().forward(z, t=t, r=r) + self.custom(self.table(cond)).reshape(-1, 1, 1, 1)


class Flipped(GaussianField):
    def forward(self, z, *, t, r, cond=None):
        return -super().forward(z, t=t, r=r)


class Reversed(GaussianField):
    def forward(self, z, *, t, r, cond=None):
        return super().forward(z, t=1 - t, r=1 - r)


class NoiseAtZero(GaussianField):
    def forward(self, z, *, t, r, cond=None):
        return -super().forward(z, t=1 - t, r=1 - r)


class Swapped(GaussianField):
    def forward(self, z, *, t, r, cond=None):
        return super().forward(z, t=r, r=t)


class Length(GaussianField):
    def forward(self, z, *, t, r, cond=None):
        return super().forward(z, t=t, r=t - r)


def examine(net, x=None, cond=None, **settings):
    return mf.doctor(net, x, cond, **{"compile": False} | settings)


def failed(report):
    return {f.name for f in report.findings if f.ok is False}


@pytest.mark.parametrize(
    "net", [DiT((1, 8, 8), width=32, depth=2, heads=4, classes=10), MLP((3,), width=32, depth=2)], ids=["DiT", "MLP"]
)
def test_sound_networks_pass_every_check_that_applies(net):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    report = mf.doctor(net)
    assert report.ok, report.text()
    assert [f.name for f in report.findings if f.ok is None] == ["convention", "dropout"]
    assert "untrained" in report["convention"].detail and "fast" in report["forward-mode"].detail
    assert "compiled u differs" in report["compile"].detail and "FLOPs 1." in report["cost"].detail
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state()) and all(p.grad is None for p in net.parameters())


def test_report_is_a_table_and_json():
    report = examine(OtherShape())
    found = json.loads(report.json())
    assert found["ok"] is False and found["network"] == "OtherShape"
    assert [f["name"] for f in found["findings"]] == [f.name for f in report.findings]
    assert "FAIL  call  " in str(report) and "1 of 8 checks failed" in str(report)
    assert max(map(len, report.text(width=90).splitlines())) <= 90


@pytest.mark.parametrize(
    ("net", "finding", "words"),
    [
        (OtherShape(), "call", ["shape of z", "[4, 32]"]),
        (OldCall(), "call", ["net(z, t=t, r=r, cond=cond)", "unexpected keyword"]),
        (NotFinite(), "call", ["not finite in rows [2, 3]"]),
        (Toy().bfloat16(), "call", ["bfloat16"]),
        (IgnoresT(), "times", ["does not depend on t"]),
        (DetachesR(), "times", ["derivative in r is exactly zero"]),
        (RoundsT(), "times", ["does not depend on t", ".long()"]),
        (StepsInT(), "times", ["derivative in t is exactly zero"]),
        (PartlyDetached(), "derivative", ["differs from finite differences"]),
        (Toy(Warp()), "forward-mode", ["between.0 (Warp)", "grid_sampler_2d", "test_doctor.py:"]),
        (Toy(nn.SiLU(), Warp(), nn.BatchNorm2d(8)), "forward-mode", ["between.1 (Warp)", "between.2 (BatchNorm2d)"]),
        (Toy(nn.BatchNorm2d(8)), "forward-mode", ["between.0 (BatchNorm2d)"]),
        (Toy(Custom()), "forward-mode", ["between.0 (Custom)", "autograd.Function"]),
        (WarpsItself(), "forward-mode", ["the network (WarpsItself)", "grid_sampler_2d"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_each_broken_network_is_named(net, finding, words):
    x = torch.randn(4, 2, 4, 4, dtype=torch.bfloat16 if "bfloat16" in words else torch.float32)
    report = examine(net, x)
    assert finding in failed(report), report.text()
    for word in words:
        assert word in report[finding].detail, report.text()
    assert len(report.findings) == 8


def test_remedies_fit_the_layer():
    def remedy(*layers):
        return examine(Toy(*layers))["forward-mode"].remedy

    assert "GroupNorm" in remedy(nn.BatchNorm2d(8)) and "`jvp` staticmethod" in remedy(Custom())
    both = remedy(Warp(), nn.BatchNorm2d(8))
    assert 'derivative="finite_difference"' in both and "GroupNorm" in both
    assert examine(Toy(nn.BatchNorm2d(8)).eval()).ok


def test_without_exact_derivative_the_other_checks_run():
    report = examine(Toy(Warp()))
    assert failed(report) == {"forward-mode"} and report["times"].ok
    assert "not run" in report["derivative"].detail and "finite_difference" in report["cost"].detail


def test_layers_that_see_no_tangent_are_not_blamed():
    report = examine(LabelOnly())
    assert report.ok, report.text()
    report = examine(LabelOnly(Warp()))
    assert "between.0 (Warp)" in report["forward-mode"].detail and "custom" not in report["forward-mode"].detail


def test_the_slow_path_is_a_remark():
    report = examine(InPlace())
    assert report.ok and "torch.func.jvp, because __setitem__ changes a tensor in place" in report.text(width=300)


class Attends(nn.Module):
    """torch's own attention without weights, which takes the fused kernel."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.time = nn.Linear(2, 8)

    def forward(self, z, *, t, r, cond=None):
        x = z + self.time(torch.stack([t, r], 1)).unsqueeze(1)
        return self.attention(x, x, x, need_weights=False)[0]


class EmbedsInFloat32(Toy):
    def times(self, t, r):
        return (1.3 * t.float()).sin().to(t.dtype), r


def test_fused_attention_and_float32_inside_are_no_faults():
    for net in (Attends(), Attends().eval()):
        assert examine(net, torch.randn(2, 5, 8)).ok
    report = examine(EmbedsInFloat32())
    assert report.ok and "rounds inside" in report["derivative"].detail, report.text()


def test_a_function_of_its_own_is_right_by_its_jvp():
    right, wrong = examine(Toy(CustomRight())), examine(Toy(CustomWrong()))
    assert right.ok and "torch.func.jvp" in right["forward-mode"].detail, right.text()
    assert failed(wrong) == {"derivative"}


def test_dropout_masks_are_those_of_a_plain_forward():
    report = examine(Toy(nn.Dropout(0.5)))
    assert report["dropout"].ok is True and report.ok, report.text()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Flipped, ["the opposite sign", "-super().forward(z, t=t, r=r"]),
        (Reversed, ["time reversed", "super().forward(z, t=1 - t, r=1 - r"]),
        (NoiseAtZero, ["time reversed and the opposite sign", "-super().forward(z, t=1 - t, r=1 - r"]),
        (Swapped, ["t and r swapped", "super().forward(z, t=r, r=t"]),
        (Length, ["the length t - r", "super().forward(z, t=t, r=t - r"]),
    ],
)
def test_conventions_are_named_and_their_adapter_mends_them(kind, words):
    x = torch.randn(4, 2, dtype=torch.float64)
    finding = examine(kind(*GAUSSIAN), x, gaussian=GAUSSIAN)["convention"]
    assert finding.ok is False and words[0] in finding.detail and words[1] in finding.remedy
    # The three lines of the remedy, run as they stand.
    scope = {kind.__name__: kind}
    exec(finding.remedy.split(":\n", 1)[1], scope)
    assert examine(scope["Adapted"](*GAUSSIAN), x, gaussian=GAUSSIAN)["convention"].ok


def test_the_closed_form_passes_with_data_and_without():
    x = GAUSSIAN[0] + GAUSSIAN[1] * torch.randn(4, 3, 4, 4, dtype=torch.float64)
    field = GaussianField(*GAUSSIAN)
    field.shape = (3, 4, 4)
    for report in (examine(field, gaussian=GAUSSIAN), examine(field, x), examine(field)):
        assert report.ok and report["convention"].ok, report.text()
    assert "pass x from the training data" in report["convention"].detail
    for kind, name in ((Flipped, "the opposite sign"), (Reversed, "time reversed"), (NoiseAtZero, "time reversed and")):
        finding = examine(kind(*GAUSSIAN), x)["convention"]
        assert finding.ok is False and name in finding.detail


def test_guidance_and_little_training_are_no_other_convention():
    data = mf.data.digits()
    x, labels = data.batch(range(64))
    net = MLP((1, 8, 8), width=32, depth=2, classes=10)
    objective = mf.MeanFlow(net, guidance=mf.Guidance(2.0))
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        objective(x, labels).loss.backward()
        optimizer.step()
    assert examine(net, x, labels)["convention"].ok

    class Backward(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, z, *, t, r, cond=None):
            return -self.net(z, t=1 - t, r=1 - r, cond=cond)

    finding = examine(Backward(), x, labels)["convention"]
    assert finding.ok is False and "v = x - e" in finding.detail


def test_many_networks_are_compiled_one_after_the_other():
    for _ in range(9):
        assert examine(Toy(nn.GroupNorm(2, 8)), compile=True)["compile"].ok


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((len,), "nn.Module"),
        ((nn.Linear(2, 2),), "pass x"),
        ((Toy(), torch.zeros(4, 2, 4, 4, dtype=torch.uint8)), "float32"),
        ((LabelOnly(), torch.zeros(4, 2, 4, 4), torch.zeros(3, dtype=torch.long)), "one row for each"),
        ((Toy(), None, None, (0.0, 0.0)), "standard deviation > 0"),
    ],
)
def test_what_cannot_be_examined_is_refused(arguments, message):
    net, x, cond, gaussian = (*arguments, None, None, None)[:4]
    with pytest.raises(ValueError, match=message):
        mf.doctor(net, x, cond, gaussian=gaussian)


FILE = """
    import torch
    from meanflow.nets import MLP

    class Broken(MLP):
        def forward(self, z, *, t, r, cond=None):
            return super().forward(z, t=t, r=t, cond=cond)

    def build():
        return MLP((3,), width=16, depth=1, classes=4)

    def broken():
        return Broken((3,), width=16, depth=1), torch.randn(5, 3)

    def crashes():
        return [][1]

    def shapeless():
        return torch.nn.Linear(2, 2)

    def nothing():
        pass

    limit = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(textwrap.dedent(FILE))
    return path


def test_command_exit_codes_and_json(file, capsys):
    assert main(["doctor", f"{file}:build", "--no-compile"]) == 0
    assert "nothing found" in capsys.readouterr().out
    assert main(["doctor", f"{file}:broken", "--json", "--no-compile"]) == 1
    found = {f["name"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert found["times"]["ok"] is False and "does not depend on r" in found["times"]["detail"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("biuld", "did you mean build?"),
        ("crashes", "IndexError: list index out of range ("),
        ("crashes", "net.py:16)"),
        ("shapeless", "return (net, x, cond)"),
        ("nothing", "must return net, (net, x) or (net, x, cond), but returned (NoneType)"),
        ("limit", "of type int"),
    ],
)
def test_command_explains_wrong_factories(name, message, file, capsys):
    assert main(["doctor", f"{file}:{name}"]) == 2
    assert message in capsys.readouterr().err


def test_command_explains_wrong_files(file, capsys):
    assert main(["doctor", f"{file.with_name('nett.py')}:build"]) == 2
    assert "did you mean net.py?" in capsys.readouterr().err
    for text, message in (("def build(:\n", "SyntaxError"), ("import torch\ntorch.zeros(2) @ torch.zeros(3)", ":2)")):
        file.write_text(text)
        assert main(["doctor", f"{file}:build"]) == 2
        error = capsys.readouterr().err
        assert message in error and "net.py:" in error and "Traceback" not in error
