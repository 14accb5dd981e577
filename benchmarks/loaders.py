"""Images per second of every data format, alone and beside a training step, with memory.

    python benchmarks/loaders.py                  # 10,000 CIFAR images in every format, about 10 minutes on two cores
    python benchmarks/loaders.py --images 2000 --seconds 2 --formats zip,npy --beside 5
    python benchmarks/loaders.py --large 2000     # memory over an epoch of 2,000 MB in every format

Reads Fashion-MNIST and CIFAR-10 from ../shared/data; the other formats are made from CIFAR-10 in a temporary folder.
Every figure comes from a fresh process. images/CPU-s divides by the processor time of all processes: it says what
reading costs, also where other programs slow the clock down.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import meanflow as mf
from meanflow.data import batches, open_data, prepare

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
FORMATS = ("idx.gz", "idx", "folder", "zip", "tar", "parquet", "arrow", "npz", "npy")
WAYS = (("1 thread", 1, 0), ("threads", None, 0), ("2 workers", None, 2))


def make(folder: Path, images: int, formats: list[str]) -> dict[str, Path]:
    """Every format that was asked for, from the same PNGs."""
    import gzip

    made: dict[str, Path] = {}
    fashion = SHARED / "data" / "fashion-mnist"
    if "idx.gz" in formats:
        made["idx.gz"] = fashion
    if "idx" in formats:
        made["idx"] = folder / "idx"
        made["idx"].mkdir()
        for path in fashion.glob("*.gz"):
            (made["idx"] / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    if not set(formats) - {"idx", "idx.gz"}:
        return made
    pngs = folder / "cifar"
    tool = [sys.executable, SHARED / "tools" / "unpack_cifar10.py", pngs, "--limit", max(1000, images)]
    subprocess.run([str(word) for word in tool], check=True)
    files = sorted(pngs.rglob("*.png"), key=lambda path: path.name)
    writers = {"zip": _zip, "tar": _tar, "parquet": _parquet, "arrow": _arrow, "npz": _npz, "npy": _npy}
    for name in formats:
        if name == "folder":
            made[name] = pngs
        elif name in writers:
            made[name] = writers[name](folder, files)
    return made


def _classes(files: list[Path]) -> list[str]:
    return sorted({path.parent.name for path in files})


def _zip(folder: Path, files: list[Path]) -> Path:
    with zipfile.ZipFile(folder / "cifar.zip", "w") as archive:
        for path in files:
            archive.write(path, f"{path.parent.name}/{path.name}")
    return folder / "cifar.zip"


def _tar(folder: Path, files: list[Path]) -> Path:
    (folder / "shards").mkdir()
    names = _classes(files)
    for first in range(0, len(files), 5000):
        with tarfile.open(folder / "shards" / f"cifar-{first // 5000:03d}.tar", "w") as archive:
            for path in files[first : first + 5000]:
                label = str(names.index(path.parent.name)).encode()
                for name, content in ((path.name, path.read_bytes()), (f"{path.stem}.cls", label)):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return folder / "shards"


def _table(files: list[Path]):  # type: ignore[no-untyped-def]
    import pyarrow as pa

    names = _classes(files)
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    return pa.table({"image": images, "label": [names.index(path.parent.name) for path in files]})


def _parquet(folder: Path, files: list[Path]) -> Path:
    import pyarrow.parquet as pq

    pq.write_table(_table(files), folder / "cifar.parquet", row_group_size=1000)
    return folder / "cifar.parquet"


def _arrow(folder: Path, files: list[Path]) -> Path:
    import pyarrow as pa

    table, path = _table(files), folder / "cifar.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=1000)
    return path


def _npz(folder: Path, files: list[Path]) -> Path:
    names = _classes(files)
    labels = np.array([names.index(path.parent.name) for path in files])
    np.savez(folder / "cifar.npz", images=np.stack([np.asarray(Image.open(path)) for path in files]), labels=labels)
    return folder / "cifar.npz"


def _npy(folder: Path, files: list[Path]) -> Path:
    return prepare(open_data(files[0].parents[1]), folder / "prepared")


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def private_mib() -> float:
    """Memory of this process that is not a mapped file, in MiB (Linux)."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), float("nan"))


def alone(source: str, threads: int | None, workers: int, batch: int, seconds: float) -> dict[str, float]:
    """Images per second of the stream, taken for at least `seconds`."""
    before, begun = private_mib(), time.perf_counter()
    data = open_data(source, threads=threads)
    opened = time.perf_counter() - begun
    stream = batches(data, batch, seed=0, workers=workers)
    for _ in range(4):
        next(stream)
    seen, begun, used, peak = 0, time.perf_counter(), cpu_seconds(), 0.0
    while time.perf_counter() - begun < seconds:
        x, _ = next(stream)
        seen += len(x)
        peak = max(peak, private_mib())
    passed = time.perf_counter() - begun
    stream.close()
    cpu = cpu_seconds() - used  # of worker processes only their whole lives are known, so theirs is left out
    return {
        "opened_s": opened,
        "images_s": seen / passed,
        "images_cpu_s": None if workers else seen / cpu,
        "private_mib": peak - before,
    }


def beside(source: str, workers: int, batch: int, steps: int) -> dict[str, float]:
    """Time of a training step fed by the loader, over the time of one fed with the same batch from memory."""
    data = open_data(source)
    torch.manual_seed(0)
    net = mf.nets.DiT(shape=data.shape, patch=4, width=96, depth=3, heads=4, classes=data.classes)
    objective = mf.MeanFlow(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)

    def step(x: torch.Tensor, cond: torch.Tensor) -> float:
        begun = time.perf_counter()
        optimizer.zero_grad()
        objective(x, cond).loss.backward()
        optimizer.step()
        return time.perf_counter() - begun

    stream = batches(data, batch, seed=0, workers=workers)
    x, cond = next(stream)
    for _ in range(2):
        step(x, cond)
    fed, kept = [], []
    for _ in range(steps):  # in turn, so that whatever else runs on the machine slows both
        begun = time.perf_counter()
        step(*next(stream))
        fed.append(time.perf_counter() - begun)
        kept.append(step(x, cond))
    stream.close()
    middle = float(np.median(kept))
    return {"step_ms": middle * 1e3, "ratio": float(np.median(fed)) / middle, "images_s": batch / middle}


def large(folder: Path, megabytes: int, name: str) -> dict[str, float]:
    """Private memory over an epoch of a made set of `megabytes` in one format."""
    count, side = megabytes, 577  # 577 x 577 x 3 bytes are one megabyte
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = np.frombuffer(rng.bytes(side * side * 3), np.uint8).reshape(side, side, 3)
        (folder / "set" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "set" / str(number % 2) / f"{number:06d}.bmp")
    files = sorted((folder / "set").rglob("*.bmp"), key=lambda path: path.name)
    source = {"folder": lambda *_: folder / "set", "zip": _zip, "tar": _tar, "parquet": _parquet_in_parts, "npy": _npy}[
        name
    ](folder, files)
    return run("epoch", str(source))


def _parquet_in_parts(folder: Path, files: list[Path]) -> Path:
    import pyarrow.parquet as pq

    (folder / "parts").mkdir()
    for first in range(0, len(files), 100):
        part = _table(files[first : first + 100])
        pq.write_table(part, folder / "parts" / f"{first:06d}.parquet", row_group_size=10)
    return folder / "parts"


def epoch(source: str) -> dict[str, float]:
    """Private memory while every image is read once, in the order of training."""
    before = private_mib()
    data = open_data(source, size=None if Path(source).name == "prepared" else 64)
    stream = batches(data, 16, seed=0)
    memory = []
    for _ in range(len(data) // 16):
        next(stream)
        memory.append(private_mib() - before)
    stream.close()
    return {"images": len(data), "first_quarter_mib": max(memory[: len(memory) // 4]), "all_mib": max(memory)}


def run(name: str, *words: object) -> dict[str, float]:
    """The result of one measurement in a process of its own."""
    command = [sys.executable, __file__, "--one", name, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def one(name: str, words: list[str]) -> None:
    """What the processes of `run` do."""
    number = [None if word == "None" else float(word) if "." in word else int(word) for word in words[1:]]
    measure = {"alone": alone, "beside": beside, "epoch": epoch}[name]
    print(json.dumps(measure(words[0], *number)))  # type: ignore[operator]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="CIFAR images, a multiple of 1000")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of one measurement")
    parser.add_argument("--beside", type=int, default=20, help="training steps beside each loader; 0 leaves them out")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--large", type=int, default=0, help="megabytes of the set for the measurement of memory")
    parser.add_argument("--one", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one[0], args.one[1:])
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    formats = args.formats.split(",")
    with tempfile.TemporaryDirectory() as folder:
        if args.large:
            report_large(Path(folder), args.large, formats)
        else:
            report(make(Path(folder), args.images, formats), args)


def report_large(folder: Path, megabytes: int, formats: list[str]) -> None:
    print(f"\nprivate memory over an epoch of {megabytes:,} MB, beyond what the process had before\n")
    print("| format | images | MiB, first quarter | MiB, whole epoch |\n|---|---|---|---|")
    for name in formats:
        if name in ("folder", "zip", "tar", "parquet", "npy"):
            found = large(folder / name, megabytes, name)
            shutil.rmtree(folder / name)
            print(f"| {name} | {found['images']:,} | {found['first_quarter_mib']:.0f} | {found['all_mib']:.0f} |")


def report(sources: dict[str, Path], args: argparse.Namespace) -> None:
    print("\n| format | read by | images/s | images/CPU-s | opened in s | private MiB |\n|---|---|---|---|---|---|")
    for name, source in sources.items():
        for way, threads, workers in WAYS:
            found = run("alone", source, threads, workers, args.batch, args.seconds)
            processor = found["images_cpu_s"]
            speed = f"{found['images_s']:,.0f} | {'not known' if processor is None else f'{processor:,.0f}'}"
            rest = f"{found['opened_s']:.2f} | {found['private_mib']:.0f}"
            print(f"| {name} | {way} | {speed} | {rest} |", flush=True)
    if not args.beside:
        return
    print("\n| format | read by | step from memory, ms | images/s of the step | step with loader / step from memory |")
    print("|---|---|---|---|---|")
    for name, source in sources.items():
        for way, _, workers in WAYS[1:]:
            found = run("beside", source, workers, args.batch, args.beside)
            print(
                f"| {name} | {way} | {found['step_ms']:.0f} | {found['images_s']:,.0f} | {found['ratio']:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
