"""Fingerprints: short strings that differ when the data differ."""

import hashlib
from collections.abc import Iterable

import torch

from ..core.conditions import Cond
from .rows import Rows, blocks, dtype_of, sampled_rows

WHOLE_BYTES = 64 * 2**20  # our choice: hashing more than this would be noticed at every start


def of_rows(x: Rows, cond: Cond) -> str:
    """sha256 over shape, dtype and bytes of x and all conditions; above 64 MiB over evenly strided rows."""
    digest = hashlib.sha256()
    for name, rows in [("x", x), *leaves(cond)]:
        digest.update(f"{name} {list(rows.shape)} {dtype_of(rows)}\n".encode())
        for _, block in blocks(rows, sampled_rows(rows, WHOLE_BYTES)):
            digest.update(block.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def of_files(files: Iterable[tuple[str, int]], cond: Cond = None) -> str:
    """sha256 over the sorted pairs of relative name and size in bytes, and over all conditions."""
    digest = hashlib.sha256()
    for name, size in sorted(files):
        digest.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
    for path, rows in leaves(cond):
        digest.update(f"{path} {list(rows.shape)} {rows.dtype}\n".encode())
        digest.update(rows.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def leaves(cond: Cond, path: str = "cond") -> list[tuple[str, torch.Tensor]]:
    """The tensors of a condition with their paths, dictionaries in the order of their sorted keys."""
    if cond is None:
        return []
    if isinstance(cond, torch.Tensor):
        return [(path, cond)]
    return [leaf for key in sorted(cond) for leaf in leaves(cond[key], f"{path}[{key!r}]")]
