"""The service under load: throughput with and without batching, latencies, errors, memory.

    python benchmarks/serving.py RUN                    8 and 64 connections, 60 seconds each, with and without batching
    python benchmarks/serving.py RUN --seconds 10 --connections 8

Every connection asks for one PNG, waits for it, and asks for the next; client and service share the machine, and the
ways take turns. Printed for each: samples a second, median and 99th percentile of the latency, answers that were no
200, and by how much the memory of the service grew from the first quarter to the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path


def rss(pid: int) -> float:
    """Resident memory in MiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def client(port: int, first_seed: int, until: float, steps: int, seen: list[float], errors: list[str]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    seed = first_seed
    while time.perf_counter() < until:
        body = json.dumps({"seeds": [seed], "steps": steps, "format": "png"}).encode()
        head = f"POST /v1/samples HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        begun = time.perf_counter()
        writer.write(f"{head}\r\n\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        content = await reader.readexactly(int(answer.split("content-length: ")[1].split("\r\n")[0]))
        seen.append(time.perf_counter() - begun)
        if " 200 " not in answer.split("\r\n")[0] or not content.startswith(b"\x89PNG"):
            errors.append(answer.split("\r\n")[0])
        seed += 1
    writer.close()


async def load(port: int, pid: int, connections: int, seconds: float, steps: int) -> dict[str, float | int]:
    seen: list[float] = []
    errors: list[str] = []
    begun = time.perf_counter()
    until = begun + seconds
    clients = [client(port, 1_000_000 * i, until, steps, seen, errors) for i in range(connections)]
    task = asyncio.gather(*clients)
    await asyncio.sleep(seconds / 4)
    early = rss(pid)
    await task
    cuts = statistics.quantiles(seen, n=100)
    return {
        "per_second": round(len(seen) / (time.perf_counter() - begun), 1),
        "p50_ms": round(1e3 * cuts[49], 1),
        "p99_ms": round(1e3 * cuts[98], 1),
        "answers": len(seen),
        "errors": len(errors),
        "grew_mib": round(rss(pid) - early, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--connections", default="8,64")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--steps", type=int, default=1)
    s = parser.parse_args()
    for connections in map(int, s.connections.split(",")):
        for options in ((), ("--no-batching",)):
            command = [sys.executable, "-m", "meanflow.cli", "serve", str(s.run), "--port", "0", *options]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as service:
                assert service.stdout is not None
                port = int(service.stdout.readline().split("127.0.0.1:")[1].split("/")[0])
                asyncio.run(load(port, service.pid, connections, 1, s.steps))  # warm
                found = asyncio.run(load(port, service.pid, connections, s.seconds, s.steps))
                service.terminate()
            print(
                json.dumps({"connections": connections, "batching": not options, "steps": s.steps} | found), flush=True
            )


if __name__ == "__main__":
    main()
