"""What is wrong with a network before it is trained, or why a trained one does not sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..core.conditions import Cond
from ..own import place, told
from .checks import check_call, check_compile, check_cost, check_derivative, check_dropout, check_times
from .convention import check_convention
from .factory import from_file
from .forward_mode import check_forward_mode
from .report import Finding, Report
from .subject import Subject, admit

__all__ = ["Finding", "Report", "doctor", "from_file"]

# In this order: what a check finds out, later ones rely on.
CHECKS: dict[str, Callable[[Subject], Finding]] = {
    "call": check_call,
    "forward-mode": check_forward_mode,
    "derivative": check_derivative,
    "times": check_times,
    "convention": check_convention,
    "dropout": check_dropout,
    "compile": check_compile,
    "cost": check_cost,
}
DERIVATIVES = ("derivative", "dropout", "compile")


def doctor(
    net: nn.Module,
    x: Tensor | None = None,
    cond: Cond = None,
    *,
    gaussian: tuple[float, float] | None = None,
    compile: bool | None = None,
) -> Report:
    """Examine a network net(z, t=t, r=r, cond=cond) -> u on four rows; the network itself is left as it was.

    x: data [B, *shape]; None takes normal numbers of the network's attribute `shape`. cond: conditions of B rows;
    without x, labels from the network's integer `null`. gaussian: (m, s) when the network was trained on N(m, s^2).
    compile: compare with torch.compile too; None does so below 2 million parameters.
    Returns a Report; print it, or look at .ok and .findings. Raises ValueError for inputs that fit no network.
    """
    with torch.random.fork_rng(devices=_devices(net)):
        torch.manual_seed(0)
        subject = admit(net, x, cond, gaussian, compile)
        findings = [_run(name, check, subject) for name, check in CHECKS.items()]
    parameters = sum(p.numel() for p in subject.net.parameters())
    return Report(type(subject.net).__name__, parameters, findings)


def _run(name: str, check: Callable[[Subject], Finding], subject: Subject) -> Finding:
    """One check; an exception in it is a finding and does not stop the others."""
    if name != "call" and not subject.runs:
        return Finding(name, None, "not run: the call fails")
    if name in DERIVATIVES and not subject.forward_mode:
        return Finding(name, None, "not run: there is no exact derivative, see forward-mode")
    torch.manual_seed(0)
    try:
        return check(subject)
    except ValueError as error:
        # The complaints of this library say themselves what to do; those of the user's code need their place.
        return Finding(name, False, told(error) if place(error) else str(error))
    except Exception as error:
        return Finding(name, False, f"fails with {told(error)}", "mend the error; the other checks ran without it")


def _devices(net: nn.Module) -> list[torch.device]:
    first = next(net.parameters(), None) if isinstance(net, nn.Module) else None
    return [first.device] if first is not None and first.is_cuda else []
