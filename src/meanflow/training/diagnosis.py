"""Why steps are not finite: one of them once more, looked at from inside, as a page of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..core.dual import Dual
from ..data.fingerprint import leaves
from ..objectives import Objective
from .parallel import World, whole
from .step import Stepper, seed_slice, to_device

SHOWN_ROWS = 10  # of each kind; our choice


def diagnose(objective: Objective, stepper: Stepper, step: int, slices: list[tuple[Any, Tensor]], world: World) -> str:
    """A page about step number `step` (from 0) in this process: rows, times, and the module where it went wrong.

    slices: micro-batches, each with the row numbers in the data set. The weights are those of that step still: a step
    that is left out changes none.
    """
    lines = [f"step {step + 1}, process {world.rank} of {world.size}"]
    lines += [f"  weights: {_finite_or_names(objective.named_parameters())}"]
    compiled, objective._compiled = objective._compiled, None  # the compiled step has no modules to look into
    try:
        for number, (batch, index) in enumerate(slices):
            lines.append(f"  micro-batch {number + 1} of {len(slices)}, {len(index)} rows")
            seed_slice(stepper.generator, stepper.settings.seed, step, number * world.size + world.rank)
            lines += [f"    {line}" for line in _examine(objective, stepper, batch, index)]
    finally:
        objective._compiled = compiled
    return "\n".join(lines)


def _examine(objective: Objective, stepper: Stepper, batch: Any, index: Tensor) -> list[str]:
    x, cond = stepper.augment(*to_device(batch, stepper.device), stepper.generator)
    found = _Findings()
    # The bare objective, outside its wrapper: nothing is synchronised while looking.
    with whole(objective), found.watching(objective.net):
        loss = objective(x, cond, generator=stepper.generator).loss
        wanted = stepper.parameters if _plain(stepper.parameters) else []
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else ()
    names = [name for name, p in objective.named_parameters() if p.requires_grad]
    pairs = ((n, g) for n, g in zip(names, gradients, strict=False) if g is not None)
    return [
        f"loss: {float(loss.detach()):g}",
        f"data: {_rows(x, index)}",
        *[f"condition {name}: {_rows(value, index)}" for name, value in leaves(cond) if value.is_floating_point()],
        *found.lines(),
        f"gradients: {_finite_or_names(pairs)}",
    ]


class _Findings:
    """What hooks on the network and its modules saw."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.module: str | None = None

    @contextmanager
    def watching(self, net: nn.Module) -> Iterator[None]:
        hooks = [net.register_forward_hook(self._call, with_kwargs=True)]
        hooks += [m.register_forward_hook(partial(self._module, name)) for name, m in net.named_modules() if name]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def lines(self) -> list[str]:
        module = self.module or "none; where the loss is not finite all the same, look at the weights and the data"
        return [*self.calls, f"first module with finite input and an output that is not: {module}"]

    def _module(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if self.module is None and _finite(args) and not _finite(output):
            kind = "value" if not _finite(output, tangents=False) else "derivative"
            self.module = f"{name} ({type(module).__name__}), in its {kind}"

    def _call(self, net: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        u = _plain_values(output)[0]
        bad = (~u.detach().flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        t, r = (_plain_values(kwargs[name])[0].detach() for name in ("t", "r"))
        text = f"network call on {len(u)} rows, t from {float(t.min()):.4g} to {float(t.max()):.4g}: "
        if not bad:
            self.calls.append(text + "u is finite")
            return
        rows = ", ".join(f"(r={float(r[i]):.6g}, t={float(t[i]):.6g})" for i in bad[:SHOWN_ROWS])
        self.calls.append(text + f"u is not finite in {len(bad)} of them, at {rows}{_more(bad)}")


def _rows(x: Tensor, index: Tensor) -> str:
    bad = (~x.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if not bad:
        return f"finite, from {float(x.min()):.4g} to {float(x.max()):.4g}"
    return f"not finite in rows {', '.join(str(int(index[i])) for i in bad[:SHOWN_ROWS])}{_more(bad)} of the data set"


def _finite_or_names(named: Iterable[tuple[str, Tensor]]) -> str:
    bad = [name for name, value in named if not _finite(value.detach())]
    return "finite" if not bad else f"not finite in {', '.join(bad[:SHOWN_ROWS])}{_more(bad)}"


def _more(found: list[Any]) -> str:
    return f" and {len(found) - SHOWN_ROWS} more" if len(found) > SHOWN_ROWS else ""


def _plain(parameters: list[nn.Parameter]) -> bool:
    """Whether gradients can be asked for outside the wrapper, which those of shards cannot."""
    return not any(hasattr(p, "to_local") for p in parameters)


def _plain_values(tree: Any, tangents: bool = False) -> list[Tensor]:
    """The tensors in a tree, dual ones as their primals, and their tangents too if asked for."""
    found = []
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Dual):
            found += [leaf.primal, leaf.tangent] if tangents else [leaf.primal]
        elif isinstance(leaf, Tensor):
            found.append(leaf.to_local() if hasattr(leaf, "to_local") else leaf)
    return found


def _finite(tree: Any, tangents: bool = True) -> bool:
    return all(bool(x.isfinite().all()) for x in _plain_values(tree, tangents) if x.is_floating_point())
