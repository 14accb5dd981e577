"""Checkpoints of the authors' JAX code for ImageNet (Gsunshine/meanflow, flax), read and written without JAX."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.guidance import Guidance
from ..core.weighting import AdaptiveWeight
from ..nets import SIZES, DiT
from .flax_files import Tree, flat, nested, read_tree, write_tree
from .folder import Converted, State, check_names, check_shapes

Arrays = Mapping[str, np.ndarray]

_LINEAR = {
    "tokens": "x_embedder/proj",
    "interval.embeddings.0.hidden": "t_embedder/mlp/layers_0/_flax_linear",
    "interval.embeddings.0.out": "t_embedder/mlp/layers_2/_flax_linear",
    "interval.embeddings.1.hidden": "h_embedder/mlp/layers_0/_flax_linear",
    "interval.embeddings.1.out": "h_embedder/mlp/layers_2/_flax_linear",
    "final_modulation": "final_layer/adaLN_modulation/layers_1/_flax_linear",
    "final": "final_layer/linear/_flax_linear",
}
_BLOCK = {
    "modulation": "adaLN_modulation/layers_1/_flax_linear",
    "attention.qkv": "attn/qkv/_flax_linear",
    "attention.out": "attn/proj/_flax_linear",
    "up": "mlp/fc1/_flax_linear",
    "down": "mlp/fc2/_flax_linear",
}
_TABLE = "y_embedder/embedding_table/_flax_embedding/embedding"


def dit_arguments(arrays: Arrays, *, heads: int, size: int) -> dict[str, Any]:
    """Constructor arguments of our DiT, read off the shapes; heads and size (side in latents) leave no trace there."""
    patch, _, channels, width = arrays["net/x_embedder/proj/kernel"].shape
    return {
        "shape": (channels, size, size),
        "patch": patch,
        "width": width,
        "depth": _depth(arrays),
        "heads": heads,
        "classes": len(arrays[f"net/{_TABLE}"]) - 1,
        "conditioning": "t,t-r",
    }


def dit_state(arrays: Arrays) -> dict[str, Tensor]:
    """State of our DiT from flax arrays keyed by path ("net/blocks/layers_0/..."); gradients convert alike."""
    state = {}
    for ours, theirs in _names(_depth(arrays)).items():
        kernel = arrays[f"net/{theirs}/kernel"]
        # flax kernels are [in, out]; the patch convolution's [p, p, C, out] flattens in our token order.
        state[f"{ours}.weight"] = torch.from_numpy(kernel.reshape(-1, kernel.shape[-1]).T.copy())
        state[f"{ours}.bias"] = torch.from_numpy(np.array(arrays[f"net/{theirs}/bias"]))
    state["condition.table.weight"] = torch.from_numpy(np.array(arrays[f"net/{_TABLE}"]))
    return state


def dit_arrays(state: Mapping[str, Tensor], patch: int) -> dict[str, np.ndarray]:
    """The inverse of dit_state: flax arrays keyed by path."""
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    arrays = {f"net/{_TABLE}": state["condition.table.weight"].numpy()}
    for ours, theirs in _names(depth).items():
        kernel = state[f"{ours}.weight"].T.contiguous().numpy()
        # The patch convolution's kernel is [p, p, C, out].
        kernel = kernel.reshape(patch, patch, -1, kernel.shape[-1]) if ours == "tokens" else kernel
        arrays |= {f"net/{theirs}/kernel": kernel, f"net/{theirs}/bias": state[f"{ours}.bias"].numpy()}
    return arrays


def read(
    checkpoint: Path, *, heads: int | None = None, size: int = 32, w: float = 1.0, k: float = 0.5, decay: float = 0.9999
) -> Converted:
    """The network, its average, Adam's moments and the step of a checkpoint of the authors' code.

    heads, size: attention heads and side of the samples, which leave no trace in the arrays; None takes the heads of
    the published size with that width. w, k, decay: guidance and EMA decay of the training, by default those of the
    released MF-B/4. Raises ValueError for a file of another code, with missing arrays, or of another size.
    """
    tree = read_tree(checkpoint)
    missing = [key for key in ("params", "ema_params", "step") if key not in tree]
    if missing:
        raise ValueError(
            f"{checkpoint} is no training state of the authors' code: {', '.join(missing)} missing, found "
            f"{', '.join(map(str, list(tree)[:6]))}"
        )
    raw, average = flat(tree["params"]), flat(tree["ema_params"])
    net = _network(checkpoint, raw, heads, size)
    optimizer = tree.get("opt_state")
    first = optimizer[0] if isinstance(optimizer, list) else optimizer.get("0") if isinstance(optimizer, dict) else None
    return Converted(
        code="authors-jax",
        source=checkpoint.name,
        net=net,
        weights=_state(checkpoint, raw, net, "params"),
        averages={decay: _state(checkpoint, average, net, "ema_params")},
        moments=_moments(checkpoint, first, net) if isinstance(first, dict) and {"mu", "nu"} <= first.keys() else None,
        step=int(tree["step"]),
        batch=256,
        objective={"guidance": Guidance.from_paper(w, k), "weighting": AdaptiveWeight(p=1.0, c=1e-2)},
        extra={"count": int(first["count"])} if isinstance(first, dict) and "count" in first else {},
        training={"lr": 1e-4, "optimizer": "adamw", "clip": None},
    )


def write(converted: Converted, out: Path) -> Path:
    """A folder checkpoint_STEP under `out` that the authors' code restores.

    Raises ValueError for a network that their code has no counterpart of.
    """
    net = _writable(converted.net)
    weights, average = converted.weights, next(iter(converted.averages.values()))
    zero = {name: {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")} for name, p in weights.items()}
    moments = converted.moments or zero

    def tree(state: Mapping[str, Tensor]) -> Tree:
        return nested(dit_arrays(state, net.patch))

    adam = {
        "count": np.array(converted.extra.get("count", converted.step), np.int32),
        "mu": tree({name: m["exp_avg"] for name, m in moments.items()}),
        "nu": tree({name: m["exp_avg_sq"] for name, m in moments.items()}),
    }
    # AdamW in optax is a chain of three parts, of which only the first has a state.
    state = {"ema_params": tree(average), "opt_state": [adam, None, None], "params": tree(weights)}
    return write_tree({**state, "step": converted.step}, out, converted.step)


def _network(source: Path, arrays: Arrays, heads: int | None, size: int) -> DiT:
    try:
        width = arrays["net/x_embedder/proj/kernel"].shape[-1]
        published = {w: h for w, _, h in SIZES.values()}
        if heads is None and width not in published:
            raise ValueError(f"the width {width} is of no published size; say --heads")
        return DiT(**dit_arguments(arrays, heads=heads or published[width], size=size))
    except KeyError as error:
        found = ", ".join(list(arrays)[:3])
        raise ValueError(
            f"{source} holds no DiT of the authors' code: {error} is missing, found {found or 'no arrays'}"
        ) from error


def _state(source: Path, arrays: Arrays, net: DiT, what: str) -> State:
    depth = len(net.blocks)
    wanted = {f"net/{theirs}/{kind}" for theirs in _names(depth).values() for kind in ("kernel", "bias")}
    check_names(source, arrays, wanted | {f"net/{_TABLE}"}, what)
    state = dit_state(arrays)
    check_shapes(source, state, net, what)
    return state


def _moments(source: Path, adam: Tree, net: DiT) -> dict[str, State]:
    first, second = (_state(source, flat(adam[key]), net, f"opt_state/{key}") for key in ("mu", "nu"))
    return {name: {"exp_avg": first[name], "exp_avg_sq": second[name]} for name in first}


def _writable(net: nn.Module) -> DiT:
    if not isinstance(net, DiT):
        raise ValueError(f"the authors' JAX code has the DiT only, this run has a {type(net).__name__}")
    a = net.arguments
    if a["classes"] is None or a["conditioning"] != "t,t-r" or net.shape[1] != net.shape[2] or a["mlp_ratio"] != 4:
        raise ValueError(
            "the authors' DiT is for square samples with classes, sees t and t - r, and has an MLP ratio of 4; this "
            f"one has shape {tuple(net.shape)}, classes {a['classes']}, conditioning {a['conditioning']!r} and ratio "
            f"{a['mlp_ratio']}"
        )
    return net


def _names(depth: int) -> dict[str, str]:
    """Their name of every layer with a kernel, by ours."""
    names = dict(_LINEAR)
    for i in range(depth):
        names |= {f"blocks.{i}.{ours}": f"blocks/layers_{i}/{theirs}" for ours, theirs in _BLOCK.items()}
    return names


def _depth(arrays: Arrays) -> int:
    return len({key.split("/")[2] for key in arrays if key.startswith("net/blocks/layers_")})
