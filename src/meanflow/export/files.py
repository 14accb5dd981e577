"""Programs as files, ONNX or torch's pt2, written only when they compute what torch computes."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from ..data.files import whole_file
from .checking import BATCHES, ExportError, Inputs, agree, as_arrays, first_of, onnx_values, values_of

KEY = "meanflow"  # of the metadata in a file
PROTOBUF_LIMIT = 2**31  # bytes of one protocol buffer, so of one ONNX file
FEW = 63  # rows; diffusers makes 64 and more contiguous before it enlarges them (Upsample2D), which changes no value
SMALL = 64  # values; fewer are not worth a node that unfolds them; our choice
EXAMPLE = 3  # rows of the example; 1 would be taken for a constant
Draw = Callable[[int], Inputs]


def write(out: Path, module: nn.Module, draw: Draw, output: str, about: dict[str, Any]) -> dict[int, float]:
    """Write a program to out (.onnx or .pt2) when it agrees with torch on random inputs; the differences by batch.

    draw: random inputs by name, in the order of the module's arguments, of so many rows. output: name of the result.
    Written to another name, compared, synced, renamed. Raises ExportError naming the first node that differs.
    """
    for name in ("onnx", "onnxscript", "onnxruntime") if out.suffix == ".onnx" else ():
        needed(name)
    module.eval().requires_grad_(False)
    with whole_file(out) as aside:
        with _quiet():
            program = exported(module, draw(EXAMPLE))
            verify = (_write_onnx if out.suffix == ".onnx" else _write_pt2)(aside, program, draw, output, about)
        return verify(module, (draw(batch) for batch in BATCHES))


Verify = Callable[[nn.Module, Iterator[Inputs]], dict[int, float]]


def exported(module: nn.Module, example: Inputs) -> ExportedProgram:
    """The program of a module for any number of rows, or for up to FEW where it treats more of them otherwise."""
    try:
        return _traced(module, example, None)
    except Exception:  # torch raises errors of many kinds for what it cannot follow; the second try tells which
        try:
            return _traced(module, example, FEW)
        except Exception as error:
            raise ExportError(
                f"torch.export cannot follow this network: {str(error).strip().splitlines()[0]}. Replace what depends "
                "on the values of tensors (if, for, .item()) or on the number of rows"
            ) from error


def _traced(module: nn.Module, example: Inputs, most: int | None) -> ExportedProgram:
    batch = Dim("batch", min=1, max=most)
    shapes = tuple({0: batch} if value.ndim else None for value in example.values())
    return torch.export.export(module, tuple(example.values()), dynamic_shapes=shapes, strict=False)


def _write_onnx(aside: Path, program: ExportedProgram, draw: Draw, output: str, about: dict[str, Any]) -> Verify:
    onnx = needed("onnx")
    size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    if size >= PROTOBUF_LIMIT:
        raise ValueError(f"one ONNX file holds at most 2 GiB, these weights have {size:,} bytes; use .pt2, or fp16")
    names = list(draw(1))
    made = torch.onnx.export(
        program, dynamo=True, external_data=False, input_names=names, output_names=[output], verbose=False
    )
    assert made is not None
    model = made.model_proto
    if about.get("weights") == "fp16":
        _halve(onnx, model.graph)
    _tidy(onnx, model, about)
    aside.write_bytes(model.SerializeToString())
    reference = made.exported_program
    return lambda module, draws: verify_onnx(aside, module, reference, draws)


def verify_onnx(
    path: Path, module: nn.Module, program: ExportedProgram | None, draws: Iterator[Inputs]
) -> dict[int, float]:
    """Compare an ONNX file, run by onnxruntime, with the module; ExportError naming the first node that differs."""
    session = needed("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])

    def first(inputs: Inputs) -> str:
        wanted = values_of(program, inputs) if program is not None else {}
        return first_of(wanted, onnx_values(path, set(wanted), inputs))

    return agree(lambda inputs: session.run(None, as_arrays(inputs))[0], module, draws, first)


def _write_pt2(aside: Path, program: ExportedProgram, draw: Draw, output: str, about: dict[str, Any]) -> Verify:
    torch.export.save(program, aside, extra_files={f"{KEY}.json": json.dumps(about)})
    return lambda module, draws: verify_pt2(aside, module, program, draws)


def verify_pt2(path: Path, module: nn.Module, program: ExportedProgram, draws: Iterator[Inputs]) -> dict[int, float]:
    """Compare a reloaded program with the module; ExportError naming the first node that differs."""
    reloaded = torch.export.load(path)
    run = reloaded.module()

    def first(inputs: Inputs) -> str:
        return first_of(values_of(program, inputs), values_of(reloaded, inputs))

    return agree(lambda inputs: run(*inputs.values()).numpy(), module, draws, first)


def read_about(path: str | Path) -> dict[str, Any]:
    """What an exported file says of itself: inputs, shape, classes, times, run, licence, latent contract."""
    path = Path(path)
    if path.suffix == ".onnx":
        found = {entry.key: entry.value for entry in needed("onnx").load(path).metadata_props}
        text = found.get(KEY)
    else:
        extra = {f"{KEY}.json": ""}
        torch.export.load(path, extra_files=extra)
        text = extra[f"{KEY}.json"]
    if not text:
        raise ValueError(f"{path} carries no description by meanflow; it was not written by meanflow export")
    return json.loads(text)


def _halve(onnx: Any, graph: Any) -> None:
    """Weights that float16 holds exactly, stored as such again: the exporter has unfolded them to float32."""
    full, casts = onnx.TensorProto.FLOAT, []
    for weight in graph.initializer:
        value = onnx.numpy_helper.to_array(weight)
        if weight.data_type != full or value.size < SMALL:
            continue
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        if np.array_equal(half.astype(np.float32), value):
            casts.append(onnx.helper.make_node("Cast", [f"{weight.name}.half"], [weight.name], to=full))
            weight.CopyFrom(onnx.numpy_helper.from_array(half, f"{weight.name}.half"))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _tidy(onnx: Any, model: Any, about: dict[str, Any]) -> None:
    """Our description instead of the exporter's, whose stack traces are as large as a small network."""
    for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        del part.metadata_props[:]
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        for place in value.type.tensor_type.shape.dim[:1]:
            place.dim_param = "batch"
    plain = {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
    onnx.helper.set_model_props(model, {**plain, KEY: json.dumps(about)})


def needed(name: str) -> Any:
    """An optional package, or ValueError naming the extra that brings it."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(
            f"exporting to ONNX needs {name}, which is missing ({error}); pip install 'meanflow[export]'"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters print of packages that they do not need."""
    import logging

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
