"""The command line as the fuzz sees it: a command runs in this process within limits, and what it did is judged."""

import io
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
from hypothesis import HealthCheck, seed, settings

from meanflow.cli import main

CASES = int(os.environ.get("MEANFLOW_FUZZ_CASES", "560"))
SEED = int(os.environ.get("MEANFLOW_FUZZ_SEED", "0"))
# Where set, every fault is written into this file and the fuzz goes on, instead of stopping at the first one.
FAULTS = os.environ.get("MEANFLOW_FUZZ_FAULTS")
# Seconds for a case, our choice: of work, far above what the slowest needs (two), and on the clock without any work.
LIMITS = (20.0, 30.0)
MEMORY = 3 * 2**30
CODES = (0, 1, 2)  # of docs/command-line.md; those after a signal cannot come here

DONE: Counter[str] = Counter()  # cases by command


class Hung(BaseException):
    """A command did not end in time; no handler of the program may swallow it."""


@dataclass
class Outcome:
    """What running a command came to; code None: it raised `error` or hung."""

    code: int | None
    out: str
    err: str
    error: str = ""


@contextmanager
def time_limit(work: float, still: float):
    """Raise Hung inside after some seconds of work of this process, and after some on the clock without work.

    A clock alone would tell of the machine: on a crowded one a case may wait for its turn for minutes.
    """
    done = time.process_time()

    def stop(number, frame):
        nonlocal done
        before, done = done, time.process_time()
        if number == signal.SIGPROF or done - before < 0.001 * still:
            raise Hung(f"{work:g} s of work, or {still:g} s without any")

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, work), (signal.ITIMER_REAL, signal.SIGALRM, still))
    before = [(number, signal.signal(number, stop)) for _, number, _ in timers]
    for timer, _, seconds in timers:
        signal.setitimer(timer, seconds, seconds)
    try:
        yield
    finally:
        for timer, _, _ in timers:
            signal.setitimer(timer, 0)
        for number, handler in before:
            signal.signal(number, handler)


@contextmanager
def little_memory():
    """Let this process take no more than some memory, so that asking for too much fails at once and not the machine."""
    if torch.cuda.is_available():  # its driver reserves far more addresses than it takes memory
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def run(words: list[str], limits: tuple[float, float] = LIMITS, command: Callable[[list[str]], int] = main) -> Outcome:
    """Run a command as the `meanflow` script would, with streams that encode as those of a terminal do."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    code, error, handler = None, "", signal.getsignal(signal.SIGINT)
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        try:
            with time_limit(*limits), little_memory():
                code = command(words)
                sys.stdout.flush()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        except BaseException as raised:
            if isinstance(raised, KeyboardInterrupt):
                raise
            error = "".join(traceback.format_exception(raised)[-4:])
        finally:
            signal.signal(signal.SIGINT, handler)
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return Outcome(code, *texts, error)


def faults(outcome: Outcome) -> list[str]:
    """What is wrong with an outcome, whatever the words were."""
    if outcome.code is None:
        return [f"raised or hung: {outcome.error}"]
    found = []
    if outcome.code not in CODES:
        found.append(f"exit code {outcome.code}, of which no page speaks")
    for name, text in (("stdout", outcome.out), ("stderr", outcome.err)):
        if "Traceback (most recent" in text:
            found.append(f"a traceback on {name}")
    if re.search("(can't|unable to) allocate", outcome.err, re.I):
        found.append("memory was asked for that was not estimated before")
    if outcome.code and not _explained(outcome):
        found.append("no message, or more than one")
    return found


def _explained(outcome: Outcome) -> bool:
    """One message of the program, or a box of tyro; a report that judges (doctor) explains itself on stdout."""
    own = re.findall(r"^meanflow: error: (.*)", outcome.err, re.M)
    if not own:
        return "full helptext" in outcome.err or (outcome.code == 1 and len(outcome.out) > 200)
    # A bare key or name, as str(KeyError("x")) is, explains nothing.
    return len(own) == 1 and len(own[0].split()) >= 3


Tree = dict[str, tuple[int, ...]]


def tree(folder: Path) -> Tree:
    """Every entry below a folder with what changes when it is written to."""
    found = {}
    for top, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(top, name)
            about = os.lstat(path)
            changes = () if name in folders else (about.st_size, about.st_mtime_ns, about.st_ino)
            found[os.path.relpath(path, folder)] = changes
    return found


def changes(before: Tree, after: Tree) -> tuple[list[str], list[str]]:
    """Entries that are new, and those that are gone or were written to."""
    new = sorted(set(after) - set(before))
    touched = sorted(name for name, about in before.items() if after.get(name) != about)
    return new, touched


def harm(before: Tree, after: Tree, outcome: Outcome, may_write: Iterable[str] = (), writes: bool = True) -> list[str]:
    """What a command should not have done to files: anything at all where it refuses its words or only looks."""
    new, touched = changes(before, after)
    new, touched = ([n for n in names if not n.endswith(".lock")] for names in (new, touched))
    if outcome.code == 2 or not writes:
        return [f"exit code {outcome.code}, but files were written: {new + touched}"] if new or touched else []
    left = [n for n in new if re.search(r"(^|/)\.[^/]*tmp", n)]
    found = [f"unfinished files were left: {left}"] if left else []
    # what lies inside of what was named or has an ending more, and new folders that lead there
    named = [
        n for n in new + touched for w in may_write if n.startswith((f"{w}/", f"{w}.")) or f"{w}/".startswith(f"{n}/")
    ]
    others = [n for n in new + touched if n not in named]
    return found + ([f"files outside of what was named were written: {others}"] if others else [])


def clear(folder: Path, before: Tree) -> None:
    """Remove what a case has added."""
    for name in sorted(set(tree(folder)) - set(before)):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def fuzzing(share: float):
    """Decorators of a fuzz test that gets a share of the cases; the draws follow from the seed alone."""

    def decorate(test):
        examples = max(int(CASES * share), 1)
        print(f"fuzz: {test.__name__}: {examples} cases, seed {SEED}", file=sys.stderr)
        options = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        return seed(SEED)(options(test))

    return decorate


def judge(words: list[str], found: list[str], outcome: Outcome, note: str = "") -> None:
    """Fail with everything that is needed to do the case again, or write it down and go on."""
    DONE[words[0] if words else ""] += 1
    if FAULTS is not None and DONE.total() % 100 == 0:
        Path(f"{FAULTS}.count").write_text(f"{DONE.total()} cases: {dict(DONE.most_common(12))}\n")
    if not found:
        return
    text = "\n".join([*found, f"words: {words!r}", note, outcome.err[-600:], outcome.out[-300:]])
    if FAULTS is None:
        raise AssertionError(text)
    with open(FAULTS, "a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"---- {time.strftime('%H:%M:%S')}\n{text}\n")
