"""The training loop."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..core.conditions import MASK, NOISE, OBSERVATION, shown
from ..data import Dataset, EDMAugment, batches, check_scale, open_data
from ..data.files import write_text
from ..data.prefetch import Batch, numbers
from ..objectives import Objective, check_network
from .blocks import recomputing
from .checkpoint import CheckpointError, forget_unfinished
from .diagnosis import diagnose
from .ema import EMA
from .grids import save_grid
from .log import Log
from .loggers import check_loggers
from .parallel import World, joined, rows_of, wrap
from .previews import decoder
from .run import describe, opened, pick_device
from .saving import Saver
from .settings import Training, settings
from .signals import StopSignal
from .speed import Yardstick
from .state import (
    PROFILES,
    State,
    is_milestone,
    own_metrics,
    resume,
    snapshot,
    snapshot_profiles,
    write,
    write_profiles,
)
from .step import Stepper, to_device

# What the processes agree on before every step; the largest counts. Between GO and DONE: the number of a signal.
# BROKEN: something beside the training went wrong, and the state is worth saving; FAILED: not so.
GO, DONE, BROKEN, FAILED, NOT_FINITE = 0, 99, 100, 101, 102


@dataclass(frozen=True)
class Run:
    """A run that was trained: its folder, the images it has seen, and the signal that stopped it early, if any."""

    folder: Path
    images: int
    stopped: str | None = None


def fit(
    objective: Objective,
    data: Any,
    *,
    out: str | Path,
    training: Training | None = None,
    code: dict[str, dict[str, str]] | None = None,
    **options: Any,
) -> Run:
    """Train an objective on data and keep everything in the folder `out`; the same call again resumes.

    data: a Dataset, a tensor, a pair (x, cond), or what open_data takes. training, options: see Training,
    e.g. images=400_000, batch=128, lr=1e-3. code: records of where network and data of the user's own come from; by
    default of the class of a network that is not of this library. Started by torchrun, all its processes share every
    batch.
    Raises ValueError before anything is written when network, data or settings do not fit, and when `out`
    holds another run; FloatingPointError when too many steps in a row are not finite; CheckpointError when
    saving fails.
    """
    s = settings(training, options)
    with joined(s.timeout) as world, ExitStack() as held:
        dataset = world.together(lambda: open_data(data))
        rows = rows_of(world, s.batch, s.accumulate)
        device = pick_device(s.device)
        objective.to(device).train()
        world.together(lambda: _check(objective, dataset, device, s.augment))
        _prepare(objective, s, world)
        config = describe(objective, dataset, s, code)
        folder = world.once(lambda: held.enter_context(opened(Path(out), config)))
        held.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
        yardstick = Yardstick(objective, dataset, device)
        if s.checkpointing:
            held.enter_context(recomputing(objective.net))
        if s.compile:
            objective.compile()
        return Loop(objective, dataset, folder, s, world, device, rows, yardstick, config).run()


class Loop:
    """One run in one process: steps, and what falls due between them."""

    def __init__(
        self,
        objective: Objective,
        data: Dataset,
        folder: Path,
        s: Training,
        world: World,
        device: torch.device,
        rows: int,
        yardstick: Yardstick,
        config: dict[str, Any],
    ) -> None:
        self.objective, self.data, self.folder, self.settings = objective, data, folder, s
        self.world, self.device, self.rows = world, device, rows
        self.stepper = Stepper(objective, wrap(objective, s, world), s, world, device)
        slices = world.size * s.accumulate
        self.state = State(
            objective,
            self.stepper.optimizer,
            EMA(objective, s.ema, s.ema_every, s.ema_start == "warm", s.ema_power),
            slices=slices,
        )
        self.trouble: Exception | None = None
        self.batch: list[Batch] = []
        carried = self._resume()
        self.saved = self.state.step
        self.decode = decoder(data, device) if self.state.step < s.steps and world.first else None
        self.draws = bool(world.agree(self.decode is not None))
        self.log = world.together(lambda: Log(folder, s, self.state.step, carried, yardstick, world, config))
        self.saver = Saver()

    def run(self) -> Run:
        """Train to the end, to a signal, or to an error, and leave a whole checkpoint behind."""
        stop = StopSignal(self.settings.deadline)
        with stop, self.log, closing(self.saver), closing(self._stream()) as stream:
            while (verdict := self._agree(stop, stream)) == GO:
                self._step()
            stop.saving()
            self._leave(verdict)
            stop.saved()
        stopped = signal.Signals(verdict).name if GO < verdict < DONE else None
        return Run(self.folder, self._images(), stopped)

    def _images(self) -> int:
        return min(self.state.step * self.settings.batch, self.settings.images)

    def _resume(self) -> dict[str, Any] | None:
        s, state = self.settings, self.state
        if self.world.first:
            forget_unfinished(self.folder / "checkpoints")
            forget_unfinished(self.folder / PROFILES)
        about = resume(self.folder, state, self.world)
        if about is None:
            return None
        found = "nothing to do" if state.step >= s.steps else "going on"
        self._say(f"{self.folder} has seen {self._images():,} of {s.images:,} images: {found}")
        before = about.get("slices", state.slices)
        if before != state.slices and state.step < s.steps:
            self._say(
                f"note: batches were drawn in {before} slices (processes times --accumulate) so far and are in "
                f"{state.slices} now: the order of the data stays, times and noise are others"
            )
        return own_metrics(about, self.world)

    def _say(self, text: str) -> None:
        _say(self.world, text)

    def _stream(self, step: int | None = None) -> Generator[Batch, None, None]:
        """This process's micro-batches from a step on: of each micro-batch of all, the rows that belong to its rank."""
        step = self.state.step if step is None else step
        start, stride = step * self.settings.batch + self.world.rank * self.rows, self.world.size * self.rows
        return batches(self.data, self.rows, seed=self.settings.seed, start=start, stride=stride)

    def _agree(self, stop: StopSignal, stream: Iterator[Batch]) -> int:
        """Whether all processes go on with another step; its data lie in `batch` then."""
        self._attempt(self.saver.check)
        verdict = int(stop.received or GO)
        if self.trouble is not None:
            verdict = FAILED if isinstance(self.trouble, CheckpointError | FloatingPointError) else BROKEN
        elif self.stepper.streak.known() >= self.settings.skip_limit:
            verdict = NOT_FINITE
        elif self.state.step >= self.settings.steps:
            verdict = DONE
        elif verdict == GO:
            self._attempt(lambda: self._fetch(stream))
            verdict = GO if self.trouble is None else BROKEN
        return self.world.agree(verdict)

    def _fetch(self, stream: Iterator[Batch]) -> None:
        self.batch = [next(stream) for _ in range(self.settings.accumulate)]

    def _step(self) -> None:
        """One optimiser step, and what falls due after it."""
        s, state = self.settings, self.state
        lr = learning_rate(s, state.step)
        parts, bad = self.stepper(state.step, self.batch, lr)
        state.ema.update()
        state.step += 1
        self._attempt(lambda: self.log.step(state.step, parts, lr, bad))
        if self.draws and s.due(state.step, s.grid_every):
            self._attempt(self._grid)
        whole = s.due(state.step, s.save_every) or is_milestone(state.step, s)
        profiles = bool(s.ema_power) and s.due(state.step, s.snapshot_interval)
        if whole or profiles:
            self._attempt(lambda: self._save(whole, profiles))

    def _attempt(self, duty: Callable[[], object]) -> bool:
        """Do it and say whether it went well.

        What goes wrong becomes the verdict of the next agreement, so that no other process waits in vain.
        """
        try:
            duty()
        except Exception as error:  # raised again in `_leave`, by all processes
            self.trouble = self.trouble or error
            return False
        return True

    def _grid(self) -> None:
        images = self.state.step * self.settings.batch
        save_grid(self.objective, self.state.ema, self.data, self.folder, images, self.device, self.world, self.decode)

    def _save(self, whole: bool = True, profiles: bool = False) -> None:
        """Copy the whole state, or the power-function averages, or both, and let the saver write them."""
        s, world, jobs = self.settings, self.world, []
        # The averages first: a checkpoint that is on the disk is never without those of its step.
        if profiles and (averages := snapshot_profiles(self.state, s, world)) is not None:
            jobs.append(partial(write_profiles, self.folder, *averages))
        if whole:
            taken = snapshot(self.state, world.gather(self.log.carried()), s, world)
            self.saved = self.state.step
            if taken is not None:
                jobs.append(partial(write, self.folder, *taken, s.keep))
        if jobs:
            self.saver.submit(lambda: [job() for job in jobs])

    def _leave(self, verdict: int) -> None:
        """Save what is not saved yet, let the saver end, and raise on all processes what went wrong in one."""
        whole = True
        if verdict == NOT_FINITE:
            self._attempt(self._stop_with_diagnosis)
        elif verdict != FAILED and self.state.step > self.saved:
            whole = self._attempt(self._save)
        whole = self._attempt(self.saver.wait) and whole
        if verdict == BROKEN and whole:
            self._say(f"note: the state after {self._images():,} images is saved; the same command goes on from there")
        self.world.raise_any(self.trouble)

    def _stop_with_diagnosis(self) -> None:
        """Look into the last step that was left out and write diagnosis.txt; raises FloatingPointError."""
        s, stride, step = self.settings, self.world.size * self.rows, int(self.stepper.streak.last)
        first = step * s.batch + self.world.rank * self.rows
        starts = range(first, first + s.accumulate * stride, stride)
        rows = [numbers(self.data, seed=s.seed, start=start, count=self.rows) for start in starts]
        with closing(self._stream(step)) as stream:
            slices = [(next(stream), index) for index in rows]
        pages = self.world.gather(diagnose(self.objective, self.stepper, step, slices, self.world))
        file = self.folder / "diagnosis.txt"
        if self.world.first:
            about = f"{s.skip_limit} steps in a row had a gradient that is not finite; the last of them once more:\n\n"
            write_text(file, about + "\n\n".join(pages) + "\n")
        raise FloatingPointError(
            f"{s.skip_limit} steps in a row had a gradient that is not finite and were left out; the last checkpoint "
            f"is untouched. {file} names rows, times and module. Lower the learning rate, or mend the data"
        )


def learning_rate(s: Training, step: int) -> float:
    """Learning rate of step number `step` (from 0)."""
    seen = step * s.batch
    if seen < s.warmup:
        return s.lr * (seen + s.batch) / (s.warmup + s.batch)
    if s.schedule == "constant":
        return s.lr
    progress = (seen - s.warmup) / max(s.images - s.warmup, 1)
    return s.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def _prepare(objective: Objective, s: Training, world: World) -> None:
    """What the settings ask of the objective, said where it changes something."""
    check_loggers(s.loggers)
    notes = []
    if s.checkpointing and getattr(objective, "derivative", None) == "exact":
        objective.derivative = "no_grad"  # type: ignore[assignment]
        notes.append(
            "activation checkpointing recomputes a plain forward pass, so the derivative is taken in a pass of its "
            'own, derivative="no_grad": the same numbers for one more forward pass on the rows with r < t'
        )
    if s.compile and s.parallel == "fsdp" and world.size > 1:
        raise ValueError(
            "the compiled step is one graph, which the gathering of shards (--parallel fsdp) would break; use "
            "--parallel ddp with compile, or fsdp without"
        )
    if objective.weighting.p == 1:
        notes.append("with p = 1 the weighted loss is about 1 by construction; watch mse_v (r = t rows) and mse_u")
    for note in notes:
        _say(world, f"note: {note}")


def _say(world: World, text: str) -> None:
    if world.first:
        with suppress(OSError):  # the terminal may be gone; the training is not
            print(text, file=sys.stderr, flush=True)


def _check(objective: Objective, data: Dataset, device: torch.device, augment: str) -> None:
    """Everything that can be known before the first step."""
    if augment != "none" and len(data.shape) != 3:
        raise ValueError(f"augment={augment!r} is for images, the data have samples of shape {tuple(data.shape)}")
    if augment == "edm" and not getattr(objective.net, "augment_features", None):
        raise ValueError(
            "augment='edm' changes images in ways that samples must not show, so it tells the network what it did: "
            f"build the network with augment_features={EDMAugment().features} (UNet), or use augment='flip'"
        )
    shape = getattr(objective.net, "shape", None)
    if shape is not None and tuple(shape) != tuple(data.shape):
        raise ValueError(
            f"the data have samples of shape {tuple(data.shape)}, the network takes {tuple(shape)}; "
            f"build the network with shape={tuple(data.shape)}"
        )
    if isinstance(objective.null, int) and data.classes is not None and data.classes > objective.null:
        raise ValueError(
            f"the data have {data.classes} classes, the network {objective.null}; build it with classes={data.classes}"
        )
    x, cond = data.batch([0, min(1, len(data) - 1)])
    if augment != "none" and isinstance(cond, dict) and {MASK, OBSERVATION, NOISE} & cond.keys():
        raise ValueError(
            f"augment={augment!r} would change the samples and not their mask, observation or noise; augment them in "
            "a data set of your own, all alike"
        )
    if shown(cond) is None and getattr(objective, "guidance", None) is not None:
        raise ValueError("guidance needs conditions, but the data have no labels; use guidance=None")
    check_scale(data)
    check_network(objective, *to_device((x, cond), device))
