"""The order in which samples are seen: one integer, the number of samples seen, says where a run stands."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from .errors import DataError

MASK = 2**64 - 1
WINDOW_BYTES = 256 * 2**20  # our choice: many thousand small images to mix, and little beside a network


@dataclass(frozen=True)
class Blocks:
    """Consecutive samples that can be read as a whole only: how many each block holds, and how many bytes."""

    rows: tuple[int, ...]
    size: tuple[int, ...]


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from integers (taken modulo 2^64), in which every part and their order count.

    splitmix64 (Steele, Lea and Flood, OOPSLA 2014) over the parts in turn, begun at their number.
    """
    state = _splitmix64(len(parts))
    for part in parts:
        state = _splitmix64(state ^ (part & MASK))
    return state >> 1


def order(length: int, *, seed: int, start: int, count: int) -> Tensor:
    """Indices int64 [count] of the endless shuffled stream over `length` samples, from position `start` on.

    Epoch k is a permutation drawn from mix_seed(seed, k); position p is in epoch p // length. So the stream
    from `start` is the stream from 0 without its first `start` indices, whatever the batches before.
    """
    if length < 1 or start < 0 or count < 0:
        raise DataError(
            f"order wants length >= 1, start >= 0 and count >= 0, got length={length}, "
            f"start={start}, count={count}; start is the number of samples seen so far"
        )
    parts = [torch.empty(0, dtype=torch.int64, device="cpu")]
    stop = start + count
    while start < stop:
        epoch, offset = divmod(start, length)
        part = _permutation(length, seed, epoch)[offset : offset + stop - start]
        parts.append(part)
        start += len(part)
    return torch.cat(parts)


def block_order(blocks: Blocks, *, seed: int, start: int, count: int) -> Tensor:
    """As `order`, over samples that lie in blocks: shuffled blocks, and shuffled samples in windows of 256 MiB.

    Every epoch is a permutation drawn from mix_seed(seed, epoch), and one window of blocks in memory serves it. Blocks
    that all fit into one window have exactly the order of `order`.
    """
    length = sum(blocks.rows)
    if sum(blocks.size) <= WINDOW_BYTES or len(blocks.rows) == 1 or length < 1 or start < 0 or count < 0:
        return order(length, seed=seed, start=start, count=count)
    parts, stop = [torch.empty(0, dtype=torch.int64, device="cpu")], start + count
    while start < stop:
        epoch, offset = divmod(start, length)
        part = _block_permutation(blocks, seed, epoch)[offset : offset + stop - start]
        parts.append(part)
        start += len(part)
    return torch.cat(parts)


@lru_cache(maxsize=2)
def _block_permutation(blocks: Blocks, seed: int, epoch: int) -> Tensor:
    firsts = [0, *accumulate(blocks.rows)]
    windows: list[list[Tensor]] = [[]]
    room = WINDOW_BYTES
    for block in _permutation(len(blocks.rows), seed, epoch).tolist():
        if windows[-1] and blocks.size[block] > room:
            windows.append([])
            room = WINDOW_BYTES
        room -= blocks.size[block]
        windows[-1].append(torch.arange(firsts[block], firsts[block + 1], device="cpu"))
    generator = torch.Generator(device="cpu")
    mixed = []
    for number, window in enumerate(windows):
        rows = torch.cat(window)
        generator.manual_seed(mix_seed(seed, epoch, number))
        mixed.append(rows[torch.randperm(len(rows), generator=generator, device="cpu")])
    return torch.cat(mixed)


# kept for the epochs at hand: drawing a million indices anew for every batch would cost more than the batch
@lru_cache(maxsize=2)
def _permutation(length: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(mix_seed(seed, epoch))
    return torch.randperm(length, generator=generator, device="cpu")


def _splitmix64(state: int) -> int:
    mixed = (state + 0x9E3779B97F4A7C15) & MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
    return mixed ^ (mixed >> 31)
