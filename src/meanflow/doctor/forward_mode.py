"""Whether the exact derivative runs, and every module that stands in its way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ..core.derivative import _UNFOLLOWED, call, jvp
from ..core.dual import NotDual, dual_jvp
from ..own import told
from .report import Finding
from .subject import Subject

# What a module was called with: the flattened arguments, their structure, and the places that move with z and t.
Inputs = tuple[list[Any], Any, list[int]]


def check_forward_mode(s: Subject) -> Finding:
    """Run the exact derivative; where it fails, try each module alone and name all that lack it."""
    step = (s.v, torch.ones_like(s.t), None)
    net = copy.deepcopy(s.net)  # a failure may leave tensors with tangents in its buffers
    try:
        with torch.enable_grad():
            jvp(net, s.z, s.t, s.r, s.cond, step)
    except Exception as error:
        found = blockers(s)
        if not found:
            return Finding("forward-mode", False, told(error), _remedy(None, str(error)))
        lines = [f"{label(s.net, name)}: {text}" for name, text in found.items()]
        remedies = dict.fromkeys(_remedy(s.net.get_submodule(name), text) for name, text in found.items())
        return Finding("forward-mode", False, "no forward-mode derivative in\n" + "\n".join(lines), "; ".join(remedies))
    s.forward_mode = True
    if net not in _UNFOLLOWED:
        return Finding("forward-mode", True, "du/dt in one pass with u, by dual tensors: the fast way")
    return Finding(
        "forward-mode",
        True,
        f"du/dt by torch.func.jvp, because {_why_not_dual(s)}: right, but it multiplies with tangents of weights that "
        "are zero and keeps a graph of the derivative, so that a step takes more FLOPs and memory (see cost)",
    )


def blockers(s: Subject) -> dict[str, str]:
    """Dotted name and message of every module whose forward-mode derivative fails, innermost modules first.

    A module is tried only when all modules inside it are sound: then the failure is in its own forward.
    """
    net = copy.deepcopy(s.net)
    called = _inputs(net, s)
    modules = dict(net.named_modules())
    found: dict[str, str] = {}
    for name in sorted(called, key=lambda name: -len(name.split(".")) if name else 0):
        inside = f"{name}." if name else ""
        if any(other.startswith(inside) for other in found):
            continue
        message = _fails(modules[name], called[name])
        if message:
            found[name] = message
    return found


def label(net: nn.Module, name: str) -> str:
    """A module by dotted name and type."""
    return f"{name or 'the network'} ({type(net.get_submodule(name)).__name__})"


def _inputs(net: nn.Module, s: Subject) -> dict[str, Inputs]:
    """The arguments of the first call of each module in a plain forward.

    With frozen parameters, the tensors that require gradients are those that depend on z and t: the others,
    such as an embedding of labels, get no tangent in training either.
    """
    called: dict[str, Inputs] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            values, structure = tree_flatten((args, kwargs))
            moving = [i for i, x in enumerate(values) if isinstance(x, Tensor) and x.requires_grad]
            if moving:
                kept = [x.detach().clone() if isinstance(x, Tensor) else x for x in values]
                called.setdefault(name, (kept, structure, moving))

        return hook

    trained = [p for p in net.parameters() if p.requires_grad]
    hooks = [m.register_forward_pre_hook(watch(name), with_kwargs=True) for name, m in net.named_modules()]
    try:
        for p in trained:
            p.requires_grad_(False)
        with torch.enable_grad():
            # Copies, because leaves must not be changed in place.
            z, t = (x.detach().requires_grad_().clone() for x in (s.z, s.t))
            net(z, t=t, r=s.r, cond=s.cond)
    finally:
        for p in trained:
            p.requires_grad_(True)
        for hook in hooks:
            hook.remove()
    return called


def _fails(module: nn.Module, inputs: Inputs) -> str:
    """The message with which torch.func.jvp of one module alone fails along random tangents, empty when it runs."""
    values, structure, moving = inputs

    def run(*moved: Tensor) -> tuple[Tensor, ...]:
        given = list(values)
        for i, x in zip(moving, moved, strict=True):
            given[i] = x
        args, kwargs = tree_unflatten(given, structure)
        out = tree_leaves(module(*args, **kwargs))
        return tuple(x for x in out if isinstance(x, Tensor) and x.is_floating_point())

    primals = tuple(values[i] for i in moving)
    try:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            torch.func.jvp(run, primals, tuple(torch.randn_like(x) for x in primals))
    except Exception as error:
        return told(error)
    return ""


def _why_not_dual(s: Subject) -> str:
    def u_of(z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return call(s.net, z, t, r, s.cond)

    try:
        with torch.enable_grad():
            dual_jvp(u_of, (s.z, s.t, s.r), (s.v, torch.ones_like(s.t), None))
    except NotDual as reason:
        return str(reason)
    return "dual tensors did not follow it"


def _remedy(module: nn.Module | None, message: str) -> str:
    if isinstance(module, nn.modules.batchnorm._NormBase) and module.training:
        return "use GroupNorm instead of BatchNorm, or keep BatchNorm in eval mode"
    if "autograd.Function" in message or "setup_context" in message or "jvp function" in message:
        return "give the autograd.Function a `setup_context` and a `jvp` staticmethod"
    return 'use derivative="finite_difference", or replace the operation by one that torch.func.jvp supports'
