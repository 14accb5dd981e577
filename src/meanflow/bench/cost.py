"""What a piece of work costs: FLOPs and bytes by counting, time by interleaved rounds."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_backward_flop_count, sdpa_flop_count

Work = Callable[[], object]


def _attention_forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# torch counts the fused attention of GPUs, but not that of CPUs.
_UNCOUNTED: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def flops(work: Work) -> int:
    """FLOPs of matrix products, convolutions and attention, forward and backward."""
    with FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
        work()
    return counter.get_total_flops()


def compiled_flops(work: Work) -> int:
    """FLOPs in the graphs that the work compiles, forward and backward; it must not have been compiled before."""
    from torch._inductor import config
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class Count(CustomGraphPass):
        total = 0

        def __call__(self, graph: torch.fx.Graph) -> None:
            Count.total += sum(_node_flops(node) for node in graph.nodes if node.op == "call_function")

        def uuid(self) -> Any:
            return None  # no cache: a graph taken from it would not be counted

    torch._dynamo.reset()
    with config.patch(post_grad_custom_post_pass=Count(), fx_graph_cache=False):
        work()
    return Count.total


def _node_flops(node: torch.fx.Node) -> int:
    kind = getattr(node.target, "overloadpacket", None)
    if kind not in flop_registry and kind not in _UNCOUNTED:
        return 0

    def value(item: Any) -> Any:
        return item.meta["val"] if isinstance(item, torch.fx.Node) else item

    args = [value(a) for a in node.args]
    if kind in _UNCOUNTED:
        return _UNCOUNTED[kind](*[a.shape if isinstance(a, Tensor) else a for a in args])
    return flop_registry[kind](*args, **{k: value(v) for k, v in node.kwargs.items()}, out_val=node.meta["val"])


def peak_bytes(work: Work, device: torch.device | None = None) -> int:
    """Largest number of bytes that tensors made during the work held at one time.

    On a GPU as its allocator tells. Elsewhere counted, not sampled: every storage from its first appearance until it
    is freed; tensors inside compiled graphs are not seen.
    """
    if device is not None and device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with _Storages() as storages:
        work()
    return storages.peak


def times(works: Mapping[str, Work], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each work in each round, interleaved so that a slow moment meets all of them; one round to warm up."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for round_number in range(rounds + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if round_number > 0:
                found[name].append(time.perf_counter() - start)
    return found


def ratio(numerator: list[float], denominator: list[float]) -> tuple[float, float]:
    """Median of the ratios round by round, and half the distance between their quartiles."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    if len(ratios) < 2:
        return ratios[0], 0.0
    low, middle, high = statistics.quantiles(ratios, n=4)
    return middle, (high - low) / 2


class _Storages(TorchDispatchMode):
    """Counts the bytes of live storages that operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._count(x.untyped_storage(), known)
        return out

    def _count(self, storage: torch.UntypedStorage, known: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen or key in known:
            return
        self.seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size
