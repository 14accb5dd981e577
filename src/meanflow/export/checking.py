"""A written file against the torch program that it came from; where they part, the first node that differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

TOLERANCE = 1e-4  # of the largest value or 1, whichever is more; our choice
BATCHES = (1, 7)
Inputs = dict[str, Tensor]
Run = Callable[[Inputs], np.ndarray[Any, Any]]


class ExportError(RuntimeError):
    """The exported file does not compute what torch computes."""


def difference(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Largest difference of two arrays, in units of the larger of 1 and the largest value of b; inf for NaN."""
    if a.shape != b.shape:
        return float("inf")
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    gap = np.abs(wide_a - wide_b).max(initial=0.0) / max(1.0, np.abs(wide_b).max(initial=0.0))
    return float("inf") if np.isnan(gap) else float(gap)


def agree(run: Run, module: nn.Module, draws: Iterator[Inputs], first: Callable[[Inputs], str]) -> dict[int, float]:
    """The difference for every batch size, or ExportError naming the first node that differs.

    uint8 may be one step apart where float32 rounding meets a boundary; that counts in units of 255.
    """
    found = {}
    for inputs in draws:
        with torch.no_grad():
            wanted = module(*inputs.values()).numpy()
        got = run(inputs)
        batch = len(next(iter(inputs.values())))
        allowed = 1.01 / 255 if wanted.dtype == np.uint8 else TOLERANCE
        found[batch] = _bytes_apart(got, wanted) if wanted.dtype == np.uint8 else difference(got, wanted)
        if found[batch] > allowed:
            raise ExportError(
                f"the exported file and torch differ by {found[batch]:.3g} on a random batch of {batch} (allowed: "
                f"{allowed:.1g}); {first(inputs)}. Nothing was written"
            )
    return found


def _bytes_apart(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).max()) / 255 if a.shape == b.shape else float("inf")


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the floating-point value of every node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, np.ndarray[Any, Any]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point():
            self.values[n.name] = value.detach().float().numpy()
        return value


def values_of(program: torch.export.ExportedProgram, inputs: Inputs) -> dict[str, np.ndarray[Any, Any]]:
    """What every node of a torch program computes, by its name, in order."""
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    recorder = _Recorder(module)
    with torch.no_grad():
        recorder.run(*inputs.values())
    return recorder.values


def first_of(wanted: dict[str, np.ndarray[Any, Any]], got: dict[str, np.ndarray[Any, Any]]) -> str:
    """The first node, in the order of `got`, whose value is not that of the torch program."""
    for name, value in got.items():
        if name in wanted and (gap := difference(value, wanted[name])) > TOLERANCE:
            return f"the first node that differs is {name} (by {gap:.3g})"
    return "no single node that both name differs, so it is one after the last of them"


def onnx_values(path: Path, names: set[str], inputs: Inputs) -> dict[str, np.ndarray[Any, Any]]:
    """The values of a file's nodes of these names, in the order of its graph."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    shown = [o for node in model.graph.node for o in node.output if o in names]
    ours = {o.name for o in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in shown if name not in ours)
    options = onnxruntime.SessionOptions()
    # Fused nodes would not have the values in between.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(shown, session.run(shown, as_arrays(inputs)), strict=True))


def as_arrays(inputs: Inputs) -> dict[str, np.ndarray[Any, Any]]:
    return {name: value.numpy() for name, value in inputs.items()}
