"""DiT parameters of the authors' JAX code (Gsunshine/meanflow, flax) as a state of our DiT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
    names = dict(_LINEAR)
    for i in range(_depth(arrays)):
        names |= {f"blocks.{i}.{ours}": f"blocks/layers_{i}/{theirs}" for ours, theirs in _BLOCK.items()}
    state = {}
    for ours, theirs in names.items():
        kernel = arrays[f"net/{theirs}/kernel"]
        # flax kernels are [in, out]; the patch convolution's [p, p, C, out] flattens in our token order.
        state[f"{ours}.weight"] = torch.from_numpy(kernel.reshape(-1, kernel.shape[-1]).T.copy())
        state[f"{ours}.bias"] = torch.from_numpy(np.array(arrays[f"net/{theirs}/bias"]))
    state["condition.table.weight"] = torch.from_numpy(np.array(arrays[f"net/{_TABLE}"]))
    return state


def _depth(arrays: Arrays) -> int:
    layers = {key.split("/")[2] for key in arrays if key.startswith("net/blocks/layers_")}
    return len(layers)
