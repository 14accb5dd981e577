"""Several processes under torchrun: who takes part, what each one reads, and what all of them agree on."""

from __future__ import annotations

import inspect
import math
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..objectives import Objective
from .blocks import blocks_of
from .settings import Training

T = TypeVar("T")
# Norms of gradients that were synchronised differ between processes by rounding at most, and on equal devices not at
# all; without synchronisation they differ by tens of per cent. Our choice, between the two.
NORM_TOLERANCE = 1e-4
# What torch and gloo or NCCL say when another process is gone or silent.
LOST = ("closed by peer", "reset by peer", "broken pipe", "timed out", "timeout", "connection refused", "unhandled")


class World:
    """The processes of a run; a single process is a world of its own, in which nothing is sent."""

    def __init__(self, rank: int = 0, size: int = 1, control: Any = None) -> None:
        self.rank, self.size = rank, size
        self._control = control  # CPU tensors travel through it, so agreeing never waits for a GPU

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def agree(self, verdict: int) -> int:
        """The largest verdict of all processes."""
        if self.size == 1:
            return verdict
        value = torch.tensor(verdict)
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self._control)
        return int(value)

    def gather(self, value: T) -> list[T]:
        """The values of all processes in the order of their ranks, on every one."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def together(self, function: Callable[[], T]) -> T:
        """Each process's own result; where one raises, all raise the error of the first rank that did."""
        result: Any = None
        trouble: Exception | None = None
        try:
            result = function()
        except Exception as error:  # sent to the others, so that none of them waits for this one
            trouble = error
        self.raise_any(trouble)
        return result

    def once(self, function: Callable[[], T]) -> T:
        """What rank 0's call returns or raises, on every process."""
        result = self.together(lambda: function() if self.first else None)
        return self.gather(result)[0]  # type: ignore[return-value]

    def raise_any(self, trouble: Exception | None) -> None:
        """Raise one's own trouble, or that of the first rank that has any."""
        if self.size == 1:
            if trouble is not None:
                raise trouble
            return
        found = [error for error in self.gather(_portable(trouble)) if error is not None]
        if found:
            raise trouble or found[0]

    def same(self, norm: float) -> None:
        """Raise RuntimeError when the processes hold gradients of different norms."""
        norms = self.gather(norm)
        if all(math.isclose(n, norms[0], rel_tol=NORM_TOLERANCE) or str(n) == str(norms[0]) for n in norms):
            return
        text = ", ".join(f"{n:.6g}" for n in norms)
        raise RuntimeError(
            f"the processes hold different gradients after synchronisation (norms {text}): the backward pass went past "
            "DistributedDataParallel, as it does when the network inside is called directly (ddp.module, a jvp on the "
            "unwrapped network). Call the wrapped objective, and compute the loss inside the objective's forward"
        )


def _portable(error: Exception | None) -> Exception | None:
    """The error where another process can read it, else one with its text."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # an error with an __init__ or contents of its own may raise anything here
        return RuntimeError(f"{type(error).__name__}: {error}")


@contextmanager
def joined(timeout: int) -> Iterator[World]:
    """The world that torchrun started this process in, or one process alone.

    timeout: seconds after which a process stops waiting for another. A process group that exists already is used and
    left as it is.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not dist.is_initialized():
        yield World()
        return
    ours, patience = not dist.is_initialized(), timedelta(seconds=timeout)
    if ours:
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank())
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=patience)
    world = World(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo", timeout=patience))
    with lost_process_explained():
        yield world
    if ours:
        dist.destroy_process_group()


@contextmanager
def lost_process_explained() -> Iterator[None]:
    """Turn the errors of a broken connection into one that says what to do."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not any(sign in text.lower() for sign in LOST):
            raise
        raise RuntimeError(
            f"another process of this run is gone or silent ({text.splitlines()[0][:200]}); look for its own message. "
            "This one stops; the checkpoints are whole, and the same command goes on from the newest"
        ) from error


def local_rank() -> int:
    """Number of this process on its machine, from torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def rows_of(world: World, batch: int, accumulate: int) -> int:
    """Rows of one micro-batch of one process; raises ValueError naming the nearest batches that can be divided."""
    parts = world.size * accumulate
    if batch % parts:
        near = [n for n in (batch // parts * parts, (batch // parts + 1) * parts) if n > 0]
        raise ValueError(
            f"a batch of {batch} cannot be divided into {parts} equal slices (processes: {world.size}, micro-batches "
            f"of each: {accumulate}); the nearest batches that can: {' and '.join(map(str, near))}"
        )
    return batch // parts


def wrap(objective: Objective, s: Training, world: World) -> nn.Module:
    """What is called for a training step: the objective, in DDP or FSDP2 where there are several processes.

    Never the network alone: the derivative is taken inside the objective, and would go past a wrapper around the
    network without any error. FSDP2 shards the objective's parameters in place.
    """
    if world.size == 1:
        return objective
    if s.parallel == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for block in blocks_of(objective.net):
            fully_shard(block)
        fully_shard(objective)  # in place
        return objective
    # Buffers are the same on all processes from the start and are not sent at every step; newer versions of torch have
    # another word for it.
    known = inspect.signature(DistributedDataParallel).parameters
    never: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    return DistributedDataParallel(objective, gradient_as_bucket_view=True, **never)


def synchronising(module: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Context of a backward pass; gradients are synchronised in that of the last micro-batch only."""
    if isinstance(module, DistributedDataParallel):
        return nullcontext() if last else module.no_sync()
    if hasattr(module, "set_requires_gradient_sync"):
        module.set_requires_gradient_sync(last)  # type: ignore[operator]
    return nullcontext()


@contextmanager
def whole(objective: nn.Module) -> Iterator[None]:
    """The parameters that FSDP2 keeps in shards at the root are whole inside, so that the network can be called."""
    sharded: Any = objective if hasattr(objective, "unshard") else None
    if sharded:
        sharded.unshard()
    try:
        yield
    finally:
        if sharded:
            sharded.reshard()


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a distributed tensor, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def full(tensor: Tensor) -> Tensor:
    """The whole of a distributed tensor (all processes must ask for it); any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like_shards(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor cut as `target` is cut, without communication; the value itself where the target is whole."""
    if not hasattr(target, "to_local"):
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(local(target).device)
    return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)  # type: ignore[attr-defined]
