"""Running the configurations: each an ordinary run in a folder of its own, several at once, none twice."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

import torch

from ...data.files import write_text
from ...evaluation.judge import draw
from ...training import fit, load
from ..config import Recipe, build
from .subjects import Subject, open_subject
from .table1 import Table, names

SCORE = "score.json"
# As in the protocol of the digits: no sample is one of the grids that training shows.
FIRST_SEED = 1_000_000


@dataclass(frozen=True)
class Job:
    """One run: a recipe, its seed included, on a subject, in a folder, judged on so many samples.

    data, protocol: fingerprint of the data and how samples are judged, so that a result is never taken for another's.
    """

    source: str
    data: str
    protocol: str
    name: str
    folder: Path
    recipe: Recipe
    samples: int

    @property
    def log(self) -> Path:
        """What the run says; beside its folder, which must be empty at the start."""
        return self.folder.with_suffix(".log")


@dataclass(frozen=True)
class Finished:
    """A run that is over: its distance and agreement, or why there is none."""

    name: str
    seed: int
    frechet: float | None
    agreement: float | None
    diverged: str | None = None


def plan(
    source: str, base: Recipe, tables: Sequence[Table], seeds: Sequence[int], samples: int, out: Path
) -> list[Job]:
    """The distinct runs of the tables on a subject, with a base recipe, in folders under `out`.

    Seed by seed: a study cut short has whole tables of fewer seeds.
    """
    subject, named = open_subject(source), names(base)
    data = str(subject.data.description()["fingerprint"])
    wanted = dict.fromkeys(value.change(base) for table in tables for value in table.values)
    return [
        Job(
            source,
            data,
            subject.protocol,
            named[recipe],
            out / named[recipe] / f"seed-{seed}",
            _seeded(recipe, seed),
            samples,
        )
        for seed in seeds
        for recipe in wanted
    ]


def run_all(jobs: Sequence[Job], workers: int, say: Callable[[str], None]) -> list[Finished]:
    """Every job, in `workers` processes with one torch thread each; what is finished already is not done again.

    Raises RuntimeError when a run was stopped, and KeyboardInterrupt after telling the workers to save.
    """
    done = finished_of(jobs)
    left = [job for job in jobs if finished(job) is None]
    if done:
        say(f"{len(done)} of {len(jobs)} runs are finished already")
    for result, seconds in _performed(left, workers):
        done.append(result)
        said = result.diverged or f"distance {result.frechet:.3f}, agreement {result.agreement:.3f}"
        say(f"[{len(done)}/{len(jobs)}] {result.name}, seed {result.seed}: {said} ({seconds:.0f} s)")
    return done


def finished_of(jobs: Sequence[Job]) -> list[Finished]:
    """What the finished ones among the jobs reached."""
    return [found for job in jobs if (found := finished(job)) is not None]


def finished(job: Job) -> Finished | None:
    """What a job's folder says it reached; None where it has not been run, or was run with other settings."""
    try:
        stored = json.loads((job.folder / SCORE).read_text(encoding="utf-8"))
        asked, result = stored["asked"], Finished(**stored["result"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return result if asked == _asked(job) else None


def perform(job: Job) -> Finished | None:
    """Train and judge one job in this process; None when a signal stopped it, after saving.

    Raises ValueError when its folder holds a run with other settings.
    """
    subject = open_subject(job.source)
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        try:
            run = fit(build(job.recipe, subject.data), subject.data, out=job.folder, training=job.recipe.training)
        except FloatingPointError as error:
            return _store(job, Finished(job.name, job.recipe.training.seed, None, None, f"diverged: {error}"))
        if run.stopped:
            return None
    return _store(job, _judged(job, subject))


def _judged(job: Job, subject: Subject) -> Finished:
    classes = subject.data.classes
    assert classes is not None
    seed = job.recipe.training.seed
    x, labels = draw(load(job.folder), job.samples, 1, classes=classes, first_seed=FIRST_SEED)
    if not bool(x.isfinite().all()):
        return Finished(job.name, seed, None, None, "diverged: samples are not finite")
    score = subject.score(x, labels)
    return Finished(job.name, seed, score.frechet, score.agreement)


def _store(job: Job, result: Finished) -> Finished:
    write_text(job.folder / SCORE, json.dumps({"asked": _asked(job), "result": asdict(result)}, indent=1))
    return result


def _asked(job: Job) -> Any:
    """What decides a result, as JSON gives it back."""
    asked = {
        "recipe": asdict(job.recipe),
        "data": job.data,
        "protocol": job.protocol,
        "samples": job.samples,
        "first_seed": FIRST_SEED,
    }
    return json.loads(json.dumps(asked))


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with this seed; saved four times on the way, so that little is lost when it is stopped."""
    images = recipe.training.images
    often = max(images // 4, recipe.training.batch)
    training = replace(
        recipe.training, seed=seed, save_every=often, grid_every=images, log_every=often, keep=1, device="cpu"
    )
    return replace(recipe, training=training)


def _performed(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Finished, float]]:
    """Results as they come, with the seconds they took."""
    # Set here, where the processes are started from: each has one thread, more would fight for the same cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context, waiting = multiprocessing.get_context("spawn"), list(jobs)
    running: dict[Future[Finished | None], tuple[Job, float]] = {}
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker) as pool:
        try:
            while waiting or running:
                # No more than there are workers: a stopped study must not start what was queued.
                while waiting and len(running) < workers:
                    job = waiting.pop(0)
                    running[pool.submit(perform, job)] = job, time.perf_counter()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job, began = running.pop(future)
                    yield _result(job, future), time.perf_counter() - began
        except BaseException:
            # fit saves on this signal and returns.
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _result(job: Job, future: Future[Finished | None]) -> Finished:
    result = future.result()
    if result is None:
        raise RuntimeError(f"{job.folder} was stopped and saved; the same command again goes on from there")
    return result


def _begin_worker() -> None:
    """One thread, no dying of Ctrl-C in the middle of a save, and no living on without the parent."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """When the parent is gone, however it went, stop as after SIGTERM: save, then end."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        # The second one ends the process; the first step after it and the save take less.
        time.sleep(10)


def default_workers() -> int:
    """The cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
