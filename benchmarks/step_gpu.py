"""Training throughput of DiT-B/2 and DiT-XL/2 on 32x32x4 latents: flow matching, the authors' algorithm, MeanFlow.

    python benchmarks/step_gpu.py                       # on a GPU: both sizes, bf16, compiled, batch 64 and 32
    python benchmarks/step_gpu.py --small               # anywhere: a small DiT, to see that it runs
    python benchmarks/step_gpu.py --profile trace.json  # where the time of a MeanFlow step goes

Prints one JSON object per row: images per second, peak memory, and the utilisation: model FLOPs (counted in the eager
step, so that no recomputation is credited) per second over the rate of a large bf16 matrix product on the same card.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import meanflow as mf
from meanflow.bench import authors_loss, flops, times
from meanflow.nets import DiT


def matmul_rate(device: torch.device, n: int) -> float:
    """FLOPs per second of an n x n bf16 product, median of 20."""
    a, b = torch.randn(2, n, n, device=device, dtype=torch.bfloat16)
    taken = times({"mm": lambda: a @ b}, 20, device)["mm"]
    return 2 * n**3 / statistics.median(taken)


def works(net: DiT, batch: int, device: torch.device, compile: bool) -> dict[str, Callable[[], None]]:
    """One forward and backward pass each; draws included, optimiser left out."""
    x = torch.randn(batch, *net.shape, device=device)
    labels = torch.arange(batch, device=device) % net.null
    noise = torch.randn_like(x)
    t, r, _ = mf.Times().draw(batch, device=device)
    flow = mf.FlowMatching(net, precision="bf16")
    plain = mf.MeanFlow(net, precision="bf16")
    guided = mf.MeanFlow(net, precision="bf16", guidance=mf.Guidance.from_paper(1.0, 0.5))
    theirs: Any = authors_loss
    if compile:
        for objective in (flow, plain, guided):
            objective.compile()
        theirs = torch.compile(authors_loss, fullgraph=True, dynamic=False)

    def authors() -> torch.Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return theirs(net, x, labels, noise=noise, t=t, r=r)

    def step(loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def work() -> None:
            net.zero_grad(set_to_none=True)
            loss().backward()

        return work

    return {
        "flow matching": step(lambda: flow(x, labels).loss),
        "authors' algorithm": step(authors),
        "meanflow": step(lambda: plain(x, labels).loss),
        "meanflow, w = 1, k = 0.5": step(lambda: guided(x, labels).loss),
    }


def measure(name: str, net: DiT, batch: int, device: torch.device, rounds: int, compile: bool, rate: float) -> None:
    """Print a row for each algorithm."""
    eager = works(net, batch, device, compile=False)
    counted = {key: flops(work) for key, work in eager.items()}
    ready = works(net, batch, device, compile)
    for work in ready.values():
        work()
    peaks = {key: peak(work, device) for key, work in ready.items()}
    taken = times(ready, rounds, device)
    for key, seconds in taken.items():
        middle = statistics.median(seconds)
        row = {
            "net": name,
            "batch": batch,
            "compiled": compile,
            "algorithm": key,
            "images_per_second": batch / middle,
            "time_over_flow_matching": middle / statistics.median(taken["flow matching"]),
            "flops_over_flow_matching": counted[key] / counted["flow matching"],
            "utilisation": counted[key] / middle / rate,
            "peak_GiB": peaks[key],
        }
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


def peak(work: Callable[[], None], device: torch.device) -> float | None:
    """Peak memory in GiB of the allocator, None without a GPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device) / 2**30


def profile(net: DiT, batch: int, device: torch.device, compile: bool, path: str) -> None:
    """Write a trace and print the kernels that take longest."""
    work = works(net, batch, device, compile)["meanflow"]
    work()
    with torch.profiler.profile() as found:
        work()
    found.export_chrome_trace(path)
    key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=60))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a small network, for machines without a GPU")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--profile", metavar="TRACE")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    rate = matmul_rate(device, 8192 if device.type == "cuda" else 1024)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(json.dumps({"device": name, "torch": torch.__version__, "matmul_TFLOPs": round(rate / 1e12, 3)}))
    shape = (4, 32, 32)
    sizes = {"B/2": 64, "XL/2": 32}
    if options.small or device.type == "cpu":
        nets = {"small": (DiT((4, 8, 8), patch=2, width=128, depth=2, heads=4, classes=10), 16)}
    else:
        nets = {size: (DiT.of_size(size, shape, classes=1000), batch) for size, batch in sizes.items()}
    for size, (net, batch) in nets.items():
        net.to(device)
        start = time.perf_counter()
        if options.profile:
            profile(net, batch, device, not options.eager, options.profile)
        else:
            measure(size, net, batch, device, options.rounds, not options.eager, rate)
        print(json.dumps({"net": size, "wall_seconds": round(time.perf_counter() - start, 1)}), flush=True)


if __name__ == "__main__":
    main()
