"""u and du/dt: the network's mean velocity and its derivative along the flow, behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .conditions import Cond, take
from .dual import NotDual, dual_jvp
from .path import like

Mode = Literal["exact", "no_grad", "finite_difference"]
MODES: tuple[str, ...] = ("exact", "no_grad", "finite_difference")
# A direction (dz, dt, dr) in (z, t, r); None stands for zero.
Step = tuple[Tensor, Tensor | None, Tensor | None]
# Networks that dual tensors can and cannot follow, found out on their first derivative.
_FOLLOWED: WeakSet[Any] = WeakSet()
_UNFOLLOWED: WeakSet[Any] = WeakSet()


class Net(Protocol):
    """What this project calls a network: net(z, t=t, r=r, cond=cond) -> u.

    z, u: [B, *shape]; t, r: [B] in [0, 1] with r <= t; cond: None, a tensor [B, ...], or a dict of them.
    """

    def __call__(self, z: Tensor, *, t: Tensor, r: Tensor, cond: Cond = None) -> Tensor: ...


@contextmanager
def evaluating(net: Callable[..., Tensor]) -> Iterator[None]:
    """Run without dropout: every sub-module in eval mode, each one's own mode restored afterwards."""
    training = [m for m in net.modules() if m.training] if isinstance(net, nn.Module) else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def call(net: Net, z: Tensor, t: Tensor, r: Tensor, cond: Cond) -> Tensor:
    """One call of the network; its output must have the shape and dtype of z."""
    u = net(z, t=t, r=r, cond=cond)
    if not isinstance(u, Tensor) or u.shape != z.shape:
        came = list(u.shape) if isinstance(u, Tensor) else type(u).__name__
        raise ValueError(
            f"the network must return u with the shape of z, {list(z.shape)}, but returned {came}; "
            "flatten, crop or project its output inside the network"
        )
    if u.dtype != z.dtype:
        raise ValueError(
            f"the network must return u in the dtype of z, {z.dtype}, but returned {u.dtype}; "
            f"end its forward with .to(z.dtype)"
        )
    return u


class Autocast:
    """A network run under autocast to bfloat16; its input, its output and everything outside stay as they are.

    Times enter in float32, and the time embeddings of this project compute in float32 whatever the autocast.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, z: Tensor, *, t: Tensor, r: Tensor, cond: Cond = None) -> Tensor:
        # Each call has an autocast of its own: its cache of cast weights must not outlive a no_grad call.
        with torch.autocast(z.device.type, dtype=torch.bfloat16):
            u = self.net(z, t=t, r=r, cond=cond)
        return u.to(z.dtype) if isinstance(u, Tensor) else u


def predict(
    net: Net,
    z: Tensor,
    v: Tensor,
    *,
    t: Tensor,
    r: Tensor,
    cond: Cond = None,
    equal: int = 0,
    mode: Mode = "exact",
    tangent: tuple[float, float] = (0.0, 1.0),
    derivative_net: Net | None = None,
) -> tuple[Tensor, Tensor]:
    """u [B, *shape] with a graph, and du/dt [B - equal, *shape] without one, for the rows after `equal`.

    The first `equal` rows have r = t: du/dt is multiplied by t - r = 0 there and is not computed. v is the velocity
    [B - equal, *shape] of the rows after them. du/dt is the JVP of u(z, r, t) with tangent (v, *tangent); (0, 1) for
    (r, t) is right, others are the paper's counter-examples. Source: arXiv:2505.13447, eq. 8 and table 1b.
    mode: "exact" (forward-mode derivative, prediction and derivative in one pass), "no_grad" (the derivative
    in a pass of its own that stores nothing), "finite_difference" (central, for layers without forward-mode
    differentiation; error of order step^2). derivative_net: the network in another precision, for the derivative.
    """
    if mode not in MODES:
        raise ValueError(f"derivative mode must be one of {', '.join(MODES)}, got {mode!r}")
    late = slice(equal, None)
    z_late, t_late, r_late, cond_late = z[late], t[late], r[late], take(cond, late)
    if equal == len(z):
        return call(net, z, t, r, cond), torch.zeros_like(z_late)
    step = (v, _constant(t_late, tangent[1]), _constant(r_late, tangent[0]))
    source = derivative_net or net
    if mode == "exact":
        u_late, dudt = jvp(source, z_late, t_late, r_late, cond_late, step)
        if equal == 0:
            return u_late, dudt
        early = slice(None, equal)
        u_early = call(net, z[early], t[early], r[early], take(cond, early))
        return torch.cat([u_early, u_late]), dudt
    derive: Callable[..., tuple[Tensor, Tensor]] = jvp if mode == "no_grad" else central_difference
    # The forked generator makes dropout draw the same mask as the forward pass that follows.
    with torch.no_grad(), _forked_rng(z):
        _, dudt = derive(source, z_late, t_late, r_late, cond_late, step)
    return call(net, z, t, r, cond), dudt


def jvp(net: Net, z: Tensor, t: Tensor, r: Tensor, cond: Cond, step: Step) -> tuple[Tensor, Tensor]:
    """u with a graph, and its derivative along step = (dz, dt, dr) without one, by forward-mode differentiation.

    Raises RuntimeError naming the layer that has no forward-mode derivative.
    """

    def u_of(z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return call(net, z, t, r, cond)

    try:
        if net in _UNFOLLOWED or torch.compiler.is_compiling():
            return _func_jvp(u_of, (z, t, r), step)
        # An autograd.Function is told by gradients being off inside it, so the first time they are on around it.
        with _rng_back_on(NotDual, z), torch.set_grad_enabled(torch.is_grad_enabled() or net not in _FOLLOWED):
            u, dudt = dual_jvp(u_of, (z, t, r), step)
        _FOLLOWED.add(net)
        return u if torch.is_grad_enabled() else u.detach(), dudt
    except NotDual:
        _UNFOLLOWED.add(net)
        return jvp(net, z, t, r, cond, step)
    except (NotImplementedError, RuntimeError) as error:
        if not _lacks_forward_ad(error):
            raise
        raise RuntimeError(_blame(net, u_of, (z, t, r), step, error)) from error


def _func_jvp(u_of: Callable[..., Tensor], at: tuple[Tensor, ...], step: Step) -> tuple[Tensor, Tensor]:
    """The same through torch.func.jvp: for what dual tensors cannot follow, and under torch.compile."""
    tangents = tuple(torch.zeros_like(p) if d is None else d for p, d in zip(at, step, strict=True))
    if torch.compiler.is_compiling():
        # Slices have views as tangents that fail inside a compiled derivative; copies do not.
        at, tangents = tuple(p.clone() for p in at), tuple(d.clone() for d in tangents)
    # Of the fused attention kernels only MATH has a forward-mode derivative.
    with sdpa_kernel(SDPBackend.MATH):
        u, dudt = torch.func.jvp(u_of, at, tangents)[:2]
    return u, dudt.detach()


def central_difference(
    net: Net,
    z: Tensor,
    t: Tensor,
    r: Tensor,
    cond: Cond,
    step: Step,
    width: float | None = None,
) -> tuple[Tensor, Tensor]:
    """u at the midpoint of two shifted calls and its derivative along step, error of order width^2.

    width: step length; None takes the cube root of the dtype's epsilon, where truncation and rounding
    balance. Times leave [0, 1] by at most the width.
    """
    h = width or float(torch.finfo(z.dtype).eps) ** (1 / 3)

    def u_at(side: float) -> Tensor:
        shifted = (p if d is None else p + side * d for p, d in zip((z, t, r), step, strict=True))
        z_, t_, r_ = shifted
        return call(net, z_, t_, r_, cond)

    with _forked_rng(z):
        ahead = u_at(h)
    behind = u_at(-h)
    return (ahead + behind) / 2, ((ahead - behind) / (2 * h)).detach()


def mean_velocity_target(v: Tensor, dudt: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """Target [B, *shape] for u, from the velocity v and the derivative du/dt along it.

    Source: arXiv:2505.13447, eq. 6 and 10.
    """
    # u = v - (t - r) du/dt
    return v - like(t - r, v) * dudt


def _constant(time: Tensor, value: float) -> Tensor | None:
    return None if value == 0 else torch.full_like(time, value)


@contextmanager
def _rng_back_on(kind: type[Exception], z: Tensor) -> Iterator[None]:
    """Undo the random draws of an attempt that ends with an exception of this kind."""
    state = torch.cuda.get_rng_state(z.device) if z.is_cuda else torch.get_rng_state()
    try:
        yield
    except kind:
        if z.is_cuda:
            torch.cuda.set_rng_state(state, z.device)
        else:
            torch.set_rng_state(state)
        raise


def _forked_rng(z: Tensor) -> AbstractContextManager[None]:
    """Draws inside leave the generator of z's device where it was."""
    return torch.random.fork_rng(devices=[z.device] if z.is_cuda else [])


def _lacks_forward_ad(error: Exception) -> bool:
    text = str(error)
    return any(
        sign in text
        for sign in (
            "forward AD",
            "forward-mode",
            "forward mode",
            "jvp",
            "setup_context",
            "in-place arithmetic",
        )
    )


def _blame(net: Net, u_of: Callable[..., Tensor], at: tuple[Tensor, ...], step: Step, error: Exception) -> str:
    """Name the innermost module that was running when the forward-mode derivative failed."""
    running: list[str] = []
    hooks = []
    if isinstance(net, nn.Module):
        for name, module in net.named_modules():
            label = f"{name or 'the network'} ({type(module).__name__})"
            hooks.append(module.register_forward_pre_hook(lambda *_, label=label: running.append(label)))
            hooks.append(module.register_forward_hook(lambda *_: running.pop() and None))
    try:
        with torch.no_grad():
            _func_jvp(u_of, at, step)
    except (NotImplementedError, RuntimeError):
        pass
    finally:
        for hook in hooks:
            hook.remove()
    where = running[-1] if running else "the network"
    return (
        f"no forward-mode derivative in {where}: {str(error).splitlines()[0]} "
        'Use derivative="finite_difference", or replace this layer by one that torch.func.jvp supports.'
    )
