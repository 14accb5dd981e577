"""What torch.compile needs so that a compiled step costs what the eager one costs, and is right.

Under torch.compile the derivative goes through torch.func.jvp, which multiplies with tangents of constant weights
that are zero everywhere (pytorch#69687); Inductor keeps those products. `fold_zeros` takes them out of the graph.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from .path import relative

aten = torch.ops.aten

# Where each of these has its fill value.
_FULL: dict[Any, int] = {aten.full.default: 1, aten.full_like.default: 1, aten.new_full.default: 2}
_ZEROS = (aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default, aten._efficientzerotensor.default)
_VIEWS = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.expand.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.slice.Tensor,
    aten.select.int,
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten._to_copy.default,
    aten.neg.default,
    torch.ops.prims.convert_element_type.default,
)
_PRODUCTS = (aten.mm.default, aten.bmm.default, aten.mul.Tensor, aten.mul.Scalar)


def fold_zeros(graph: Graph) -> None:
    """Graph pass: products with a tensor that is known to be zero become zeros, sums with it the other term."""
    zeros: set[Node] = set()
    for node in list(graph.nodes):
        if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor):
            _fold(graph, node, zeros)
    graph.eliminate_dead_code()
    graph.lint()


@cache
def inductor_options() -> dict[str, Any]:
    """Options for torch.compile that put `fold_zeros` in; made late because importing Inductor takes a second."""
    from torch._inductor.custom_graph_pass import CustomGraphPass

    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()

    class FoldZeros(CustomGraphPass):
        def __call__(self, graph: Graph) -> None:
            fold_zeros(graph)

        def uuid(self) -> Any:
            # Changes with this file, so that cached graphs of older versions are not taken.
            return version

    return {"joint_custom_pre_pass": FoldZeros()}


def _fold(graph: Graph, node: Node, zeros: set[Node]) -> None:
    target, args = node.target, node.args
    if _is_zero_itself(node) or (target in _VIEWS and args[0] in zeros):
        zeros.add(node)
    elif target in _PRODUCTS and any(isinstance(a, Node) and a in zeros for a in args[:2]):
        zeros.add(_replaced(graph, node))
    elif target == aten.addmm.default and (args[1] in zeros or args[2] in zeros):
        if node.kwargs.get("beta", 1) == 1 and args[0] not in zeros:
            _replaced_by_expanded(graph, node, args[0])
        elif args[0] in zeros:
            zeros.add(_replaced(graph, node))
    elif target == aten.convolution.default and (args[0] in zeros or args[1] in zeros) and args[2] is None:
        zeros.add(_replaced(graph, node))
    elif target in (aten.add.Tensor, aten.sub.Tensor) and not node.kwargs:
        _fold_sum(node, zeros)


def _fold_sum(node: Node, zeros: set[Node]) -> None:
    a, b = node.args[:2]
    if isinstance(b, Node) and b in zeros and _same(a, node):
        node.replace_all_uses_with(a)  # type: ignore[arg-type]
    elif node.target == aten.add.Tensor and isinstance(a, Node) and a in zeros and _same(b, node):
        node.replace_all_uses_with(b)  # type: ignore[arg-type]


def _is_zero_itself(node: Node) -> bool:
    if node.target in _ZEROS:
        return True
    place = _FULL.get(node.target)
    return place is not None and bool(node.args[place] == 0)


def _same(value: Any, node: Node) -> bool:
    """Whether a node has the shape and type of another, so that it can stand in for it."""
    if not isinstance(value, Node) or not isinstance(value.meta.get("val"), Tensor):
        return False
    ours, theirs = value.meta["val"], node.meta["val"]
    return ours.shape == theirs.shape and ours.dtype == theirs.dtype


def _replaced(graph: Graph, node: Node) -> Node:
    value = node.meta["val"]
    with graph.inserting_before(node):
        zero = graph.call_function(
            aten.full.default, (list(value.shape), 0), {"dtype": value.dtype, "device": value.device}
        )
    zero.meta.update(node.meta)
    node.replace_all_uses_with(zero)
    graph.erase_node(node)
    return zero


def _replaced_by_expanded(graph: Graph, node: Node, bias: Any) -> None:
    with graph.inserting_before(node):
        expanded = graph.call_function(aten.expand.default, (bias, list(node.meta["val"].shape)))
    expanded.meta.update(node.meta)
    node.replace_all_uses_with(expanded)
    graph.erase_node(node)


class PlainGroupNorm(nn.GroupNorm):
    """GroupNorm of primitive operations: the fused one fails under jvp and torch.compile (pytorch#152185)."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, ...] -> the same shape."""
        grouped = input.reshape(input.shape[0], self.num_groups, -1)
        centred = grouped - grouped.mean(-1, keepdim=True)
        scaled = centred * (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return _affine(self, scaled.reshape(input.shape), (1, -1) + (1,) * (input.ndim - 2))


class PlainLayerNorm(nn.LayerNorm):
    """LayerNorm of primitive operations, for the same reason."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., *normalized_shape] -> the same shape."""
        dims = tuple(range(-len(self.normalized_shape), 0))
        centred = input - input.mean(dims, keepdim=True)
        scaled = centred * (centred.square().mean(dims, keepdim=True) + self.eps).rsqrt()
        return _affine(self, scaled, tuple(self.normalized_shape))


def _affine(module: Any, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    if module.weight is not None:
        x = x * module.weight.reshape(shape)
    return x if module.bias is None else x + module.bias.reshape(shape)


class Compiled:
    """A function compiled by torch.compile that proves itself on its first call, and its eager form otherwise.

    function: returns a named tuple with output.loss, u and dudt. net: whose gradients are compared.
    tolerance: largest relative difference of u, du/dt and gradients.
    """

    def __init__(self, function: Callable[..., Any], net: nn.Module, tolerance: float = 1e-3) -> None:
        self.function, self.net, self.tolerance = function, net, tolerance
        self.fast: Callable[..., Any] | None = torch.compile(
            function, fullgraph=True, dynamic=False, options=inductor_options()
        )
        self.proven = False

    def __call__(self, *args: Any) -> Any:
        if not self.proven:
            self._prove(args)
        return (self.fast or self.function)(*args)

    def _prove(self, args: tuple[Any, ...]) -> None:
        self.proven = True
        try:
            differs = self._difference(args)
        except Exception as error:  # whatever Dynamo and Inductor raise, eager can go on
            self.fast = None
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            warnings.warn(f"this network does not compile, going on in eager: {reason}", stacklevel=2)
            return
        name, difference = max(differs.items(), key=lambda item: item[1])
        if not difference <= self.tolerance:
            self.fast = None
            warnings.warn(
                f"compiled and eager differ: {name} by {difference:.1e} relative, more than {self.tolerance:g}; "
                "going on in eager",
                stacklevel=2,
            )

    def _difference(self, args: tuple[Any, ...]) -> dict[str, float]:
        """Relative differences of u, du/dt and all gradients between compiled and eager, on the same draws."""
        assert self.fast is not None
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        found = []
        for function in (self.fast, self.function):
            # The forked generator gives dropout the same seed in both.
            with torch.random.fork_rng():
                step = function(*args)
                gradients = torch.autograd.grad(step.output.loss, parameters, allow_unused=True)
            flat = torch.cat([g.flatten() for g in gradients if g is not None])
            found.append({"u": step.u, "du/dt": step.dudt, "gradients": flat})
        fast, slow = found
        return {name: relative(fast[name], value) for name, value in slow.items() if value is not None}


def prepare(net: nn.Module) -> nn.Module:
    """Give the normalisation layers of a network the forms that compile under a derivative; state and keys stay."""
    plain = {nn.GroupNorm: PlainGroupNorm, nn.LayerNorm: PlainLayerNorm}
    for module in net.modules():
        if type(module) in plain:
            module.__class__ = plain[type(module)]
    return net
