"""The checks of the network as a function: its call, its times, its derivative, its dropout, compiled, its price."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..bench.cost import Work, flops, peak_bytes
from ..core.compiled import prepare
from ..core.conditions import Cond, map_cond
from ..core.derivative import Mode, call, central_difference, evaluating, jvp
from ..core.path import relative
from ..core.times import Times
from ..objectives import FlowMatching, MeanFlow
from ..objectives.check import Filled, check_labels, check_time, check_weights
from ..own import told
from .report import Finding
from .subject import Subject, filled

# Largest relative difference of du/dt to finite differences, in float64 and where the network rounds to float32.
EXACT, ROUNDED = 1e-5, 1e-2
# Step lengths at which finite differences in float32 are tried: truncation on one side, rounding on the other.
WIDTHS = (3e-2, 1e-2, 3e-3, 1e-3)
# Rows and share of r = t of the step that is priced.
BATCH, SHARE_EQUAL = 8, 0.75


@torch.no_grad()
def check_call(s: Subject) -> Finding:
    """net(z, t=t, r=r, cond=cond) gives finite numbers in the shape and dtype of z."""
    check_labels(MeanFlow(s.net), s.cond)
    check_weights(s.net)
    with evaluating(s.net):
        u = call(Filled(s.net), s.z, s.t, s.r, s.cond)
    if not bool(u.isfinite().all()):
        rows = [i for i, row in enumerate(u) if not bool(row.isfinite().all())]
        return Finding(
            "call",
            False,
            f"u is not finite in rows {rows}, with t = {_list(s.t[rows])} and r = {_list(s.r[rows])}",
            "look for a division by t - r or 1 - t, a logarithm of a time, or broken weights",
        )
    s.runs = True
    return Finding("call", True, f"net(z, t=t, r=r, cond=cond) returns u {list(u.shape)}, {_plain(u.dtype)}, finite")


@torch.no_grad()
def check_times(s: Subject) -> Finding:
    """The output moves with t and with r, and so does the derivative."""
    net = Filled(s.net)
    t, r = torch.full_like(s.t, 0.7), torch.full_like(s.r, 0.3)
    problems = []
    with evaluating(s.net):
        for name in ("t", "r"):
            try:
                check_time(net, s.x, t, r, s.cond, name, s.forward_mode)
            except ValueError as error:
                problems.append(str(error))
    if problems:
        return Finding("times", False, "\n".join(problems), "let t and r reach the output as floats, with their graph")
    return Finding("times", True, "the output and its derivative depend on t and on r")


@torch.no_grad()
def check_derivative(s: Subject) -> Finding:
    """du/dt against finite differences, in float64 where the network can."""
    try:
        error = _difference(s, torch.float64, None)
    except Exception as reason:
        return _rounded(s, s.z.dtype, 1.0, f"float64 does not run: {told(reason)}")
    if error < EXACT:
        return Finding("derivative", True, f"du/dt is within {error:.1e} of finite differences, in float64")
    # Rounding inside the network weighs less over long steps, a wrong derivative does not.
    return _rounded(s, torch.float64, error / 10, f"over a short step in float64: {error:.1e}")


def _rounded(s: Subject, dtype: torch.dtype, below: float, why: str) -> Finding:
    """The verdict for a network that does not compute in float64 throughout, from steps that outweigh its rounding."""
    error = min(_difference(s, dtype, width) for width in WIDTHS)
    if error < min(ROUNDED, below):
        detail = f"du/dt is within {error:.1e} of finite differences over long steps; the network rounds inside ({why})"
        return Finding("derivative", True, detail)
    return Finding(
        "derivative",
        False,
        f"du/dt differs from finite differences by {error:.1e} of its length ({why})",
        "look for .detach(), .item() or rounding of z or t on a part of the way, for a wrong `jvp` of an "
        'autograd.Function, or use derivative="finite_difference"',
    )


def _difference(s: Subject, dtype: torch.dtype, width: float | None) -> float:
    net = filled(s.net, dtype)
    z, v, t, r = (x.to(dtype) for x in (s.z, s.v, s.t, s.r))
    cond = map_cond(lambda c: c.to(dtype) if c.is_floating_point() else c, s.cond)
    step = (v, torch.ones_like(t), None)
    with evaluating(net):
        with torch.enable_grad():  # as in training
            _, exact = jvp(net, z, t, r, cond, step)
        _, near = central_difference(net, z, t, r, cond, step, width=width)
    return relative(exact, near)


@torch.no_grad()
def check_dropout(s: Subject) -> Finding:
    """u of the derivative pass has the mask of a plain forward that starts from the same generator state."""
    net = filled(s.net).train()
    for module in net.modules():
        # Batch statistics are no matter of dropout, and forward-mode differentiation fails on them.
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.eval()

    def forward(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return call(net, s.z, s.t, s.r, s.cond)

    plain = forward(0)
    if torch.equal(plain, forward(1)):
        return Finding("dropout", None, "not applicable: the network draws nothing in training mode")
    torch.manual_seed(0)
    with torch.enable_grad():
        u, _ = jvp(net, s.z, s.t, s.r, s.cond, (s.v, torch.ones_like(s.t), None))
    error = relative(u.detach(), plain)
    if error < 1e-3:
        return Finding("dropout", True, f"the derivative pass has the masks of a plain forward (u within {error:.1e})")
    return Finding(
        "dropout",
        False,
        f"with one generator state u of the derivative pass differs from that of a plain forward by {error:.1e}",
        'draw masks with nn.Dropout or F.dropout, or use derivative="exact", which takes u and du/dt from one pass',
    )


def check_compile(s: Subject) -> Finding:
    """u and du/dt of a compiled derivative are those of the eager one."""
    if not s.compile:
        return Finding("compile", None, "not run: for networks of 2 million parameters and more, or when switched off")
    net = filled(s.net)
    given = tuple(x.contiguous().clone() for x in (s.z, s.t, s.r, s.v))

    def derive(z: Tensor, t: Tensor, r: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return jvp(net, z, t, r, s.cond, (v, torch.ones_like(t), None))

    with torch.enable_grad(), evaluating(net):
        eager = derive(*given)
        prepare(net)  # as objectives do
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compiled = _compiled(derive)(*given)
        except Exception as error:
            return Finding("compile", None, f"torch.compile fails, the network runs eager: {told(error)}")
    errors = [relative(a.detach(), b.detach()) for a, b in zip(compiled, eager, strict=True)]
    detail = f"compiled u differs by {errors[0]:.1e} from eager, du/dt by {errors[1]:.1e}"
    if max(errors) < 1e-3:
        return Finding("compile", True, detail)
    return Finding("compile", False, detail, "do not compile this network; an autograd.Function loses its jvp there")


def check_cost(s: Subject) -> Finding:
    """FLOPs and peak bytes of a training step as ratios to flow matching on the same network and batch."""
    mode: Mode = "exact" if s.forward_mode else "finite_difference"
    x, cond = s.rows(BATCH)
    noise = torch.randn_like(x)
    t, r, _ = Times(share_equal=SHARE_EQUAL).draw(BATCH, device=x.device)
    t, r = t.to(x.dtype), r.to(x.dtype)
    flow, ours = FlowMatching(s.net), MeanFlow(s.net, derivative=mode)
    if not any(p.requires_grad for p in s.net.parameters()):
        return Finding("cost", None, "not applicable: the network has no trainable parameter")

    def step(objective: FlowMatching | MeanFlow, cond: Cond, **times: Tensor) -> Work:
        def work() -> None:
            s.net.zero_grad(set_to_none=True)
            objective.loss(x, cond, noise=noise, **times).loss.backward()

        return work

    works = (step(ours, cond, t=t, r=r), step(flow, cond, t=t))
    weights = sum(p.numel() * p.element_size() for p in s.net.parameters())
    counts, peaks = [flops(w) for w in works], [peak_bytes(w) + weights for w in works]
    price = f"FLOPs {counts[0] / counts[1]:.2f}, " if counts[1] else ""
    return Finding(
        "cost",
        True,
        f"a training step takes {price}peak memory {peaks[0] / peaks[1]:.2f} times those of a flow-matching step "
        f'({BATCH} rows, {SHARE_EQUAL:.0%} with r = t, derivative="{mode}")',
    )


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Every examination compiles the same code object for another network; a new start keeps torch's limit away.
    torch._dynamo.reset_code(function.__code__)
    return torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=False)


def _list(x: Tensor) -> list[float]:
    return [round(value, 3) for value in x.tolist()]


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
