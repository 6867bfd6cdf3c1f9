"""Trainer: batches, learning-rate schedule, evaluation and metrics around Runtime.train_step.

What it does at a step is a function of the step's number alone, so a run that is opened again goes on as if it had
never stopped.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np

from . import metrics
from .autotune import N_LR_PROBES
from .data import Dataset
from .errors import ArgumentError, IoError
from .evaluate import EvalResult, evaluate_scores, prior
from .signals import Signals

SCHEDULES = ("constant", "linear", "cosine")


def schedule_factor(schedule: str, step: int, steps: int, warmup: int = 0) -> float:
    """What the run's lr is multiplied by at `step` (from 0) of `steps`: a line up over the warmup, then constant, or
    down to nearly 0.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return 1.0 - done
    return 0.5 * (1.0 + math.cos(math.pi * done))


def check_steps(method, steps: int, warmup: int) -> None:
    if warmup > steps:
        raise ArgumentError(f"[trainer] warmup {warmup}, expected at most steps, which is {steps}")
    if method.most_steps is not None and steps > method.most_steps:
        raise ArgumentError(
            f"[trainer] steps {steps}, expected at most {method.most_steps}: then what piles up beside the base has rank_cap"
            f" {method.rank_cap}; a larger rank_cap or refresh allows more"
        )


def dataset_scores(run, data: Dataset, batch: int, progress=lambda done, total: None):
    """Option scores of every example in file order, float32 [n_examples, n_options]. progress(done, total): examples."""
    out, done = [], 0
    for b in data.in_order(batch):
        out.append(run.scores(b))
        done += len(b)
        progress(done, len(data))
    return np.concatenate(out)


@dataclass(frozen=True)
class FitResult:
    """steps: the run's last committed step. steps_skipped: of them those whose loss was not finite. train_seconds: spent in steps, all sittings of the run together.
    interrupted: a signal asked it to end, or Trainer.stop before its last step; everything saved.
    """

    steps: int
    steps_skipped: int
    train_seconds: float
    peak_rss_bytes: int
    interrupted: bool


class _Interrupted(Exception):
    """An evaluation is not gone on with."""


class _Names:
    """That the run's files keep their names: what is written to one that lost its own nobody finds again."""

    FILES = ("journal.smz", "lock")

    def __init__(self, run_dir):
        paths = [os.path.join(run_dir, name) for name in self.FILES] if run_dir else []
        self._found = {path: os.stat(path) for path in paths}

    def check(self, step: int) -> None:
        """IoError: one was moved, deleted or replaced."""
        for path, before in self._found.items():
            try:
                if os.path.samestat(os.stat(path), before):
                    continue
                found = "another file than"
            except FileNotFoundError:
                found = "gone, expected"
            raise IoError(
                f"[run] '{path}' is {found} the one this run began with; it was moved, deleted or replaced before the "
                f"end of step {step}; put the run folder back and resume it, or begin a new run"
            )


class Trainer:
    """Trains `run` on `train` (a Dataset) up to step `steps` of the run.

    eval: a Dataset looked at every `eval_every` steps and after the last one. schedule, warmup: see schedule_factor;
    warmup counts steps. callbacks: objects with any of on_measure(trainer), on_measured(trainer) (around what is "auto"), on_start(trainer),
    on_survival(trainer, share) (what operand rounding leaves of the perturbation, before the first step and at each evaluation),
    on_step(trainer, result), on_eval(trainer, result, step), on_end(trainer, fit_result). signals: those of the newest step, by key (signals.py).

    SIGINT and SIGTERM, when fit runs in the main thread, end it after the step in hand, without the evaluation that is
    due there: the fit that goes on begins with it. A second one ends the process as usual.
    """

    def __init__(
        self,
        run,
        train: Dataset,
        eval: Dataset | None = None,
        *,
        steps: int,
        batch: int = 16,
        schedule: str = "constant",
        warmup: int = 0,
        eval_every: int | None = None,
        callbacks=(),
    ):
        if schedule not in SCHEDULES:
            raise ArgumentError(f"[trainer] schedule {schedule!r}, expected one of {', '.join(SCHEDULES)}")
        for name, value, least in (
            ("steps", steps, 1),
            ("batch", batch, 1),
            ("warmup", warmup, 0),
            ("eval_every", 1 if eval_every is None else eval_every, 1),
        ):
            if value < least:
                raise ArgumentError(f"[trainer] {name} {value}, expected at least {least}")
        check_steps(run.method, steps, warmup)
        self.run, self.train, self.eval = run, train, eval
        self.steps, self.batch, self.schedule, self.warmup = steps, batch, schedule, warmup
        self.eval_every, self.callbacks = eval_every, tuple(callbacks)
        self.stop = self._signalled = False
        self.signals: dict = {}

    def fit(self) -> FitResult:
        run = self.run
        writer = metrics.Writer(run.run_dir, run.step) if run.run_dir else None
        seconds, peak, skipped, evaluated = 0.0, 0, 0, 0
        signals = Signals(run.method.parts())
        for line in metrics.lines(run.run_dir) if run.run_dir else ():
            if "type" not in line:
                seconds += line["seconds"]
                peak = max(peak, line["peak_rss_bytes"])
                skipped += line["skipped"]
                signals.see(line)
            elif line["type"] == "eval":
                evaluated = line["step"]
        self.stop = self._signalled = False
        try:
            if run.step < self.steps and not run.started:
                # On the run's own first batches. Not under the signal handlers: nothing is committed yet, so an
                # interrupt may end it at once.
                first = self.train.batches(run.seed, self.batch) if run.is_auto else iter(())
                self._tell("on_measure", self)
                run.resolve_auto(list(islice(first, N_LR_PROBES)))
                self._tell("on_measured", self)
            names = _Names(run.run_dir)
            with self._stops_at_signals():
                self._tell("on_start", self)
                # A sitting that ended before it had evaluated its last step left that to this one.
                if writer and run.step > evaluated and self._evaluation_is_due():
                    self._evaluate(writer)
                batches = self.train.batches(run.seed, self.batch, run.step)
                survival = self._survival(writer) if run.step < self.steps and not self.stop else {}
                while run.step < self.steps and not self.stop:
                    factor = schedule_factor(self.schedule, run.step, self.steps, self.warmup)
                    result = run.train_step(next(batches), lr_scale=factor)
                    names.check(run.step)
                    seconds += result.seconds
                    peak = max(peak, result.peak_rss_bytes)
                    skipped += result.skipped
                    line = asdict(result)
                    self.signals = signals.after(line)
                    if writer:
                        writer.write(line | self.signals | survival)
                    survival = {}
                    self._tell("on_step", self, result)
                    if self._evaluation_is_due():
                        self._evaluate(writer)
                run.flush()
        finally:
            if writer:
                writer.close()
        done = FitResult(run.step, skipped, seconds, peak, self._signalled or run.step < self.steps)
        self._tell("on_end", self, done)
        return done

    def _evaluation_is_due(self) -> bool:
        step = self.run.step
        at_interval = bool(self.eval_every) and step % self.eval_every == 0
        return self.eval is not None and step > 0 and (at_interval or step == self.steps)

    def _evaluate(self, writer) -> None:
        """Not to its end where a signal asks to stop."""

        def go_on(done, total):
            if self._signalled and done < total:
                raise _Interrupted

        try:
            result = evaluate(self.run, self.eval, self.batch, progress=go_on)
        except _Interrupted:
            return
        survival = self._survival(writer)
        if writer:
            writer.write({"type": "eval", "step": self.run.step, **asdict(result), **survival})
        self._tell("on_eval", self, result, self.run.step)

    def _survival(self, writer) -> dict:
        """surviving_perturbation at the next step's direction, for a line of metrics.jsonl. It visits what trains, so not at every step; not at
        all where nobody is told."""
        if not writer and not self.callbacks:
            return {}
        share = self.run.diagnostics()["surviving_perturbation"]
        self._tell("on_survival", self, share)
        return {"surviving_perturbation": share}

    def _tell(self, name: str, *arguments) -> None:
        for callback in self.callbacks:
            if hasattr(callback, name):
                getattr(callback, name)(*arguments)

    @contextmanager
    def _stops_at_signals(self):
        """First signal: stop after this step. The old handlers are put back then, so a second one is not swallowed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # None: a handler that is not Python's, which could not be put back.
        old = {s: h for s in (signal.SIGINT, signal.SIGTERM) if (h := signal.getsignal(s)) is not None}

        def restore():
            for s, handler in old.items():
                signal.signal(s, handler)

        def ask_to_stop(number, frame):
            self.stop = self._signalled = True
            restore()

        for s in old:
            signal.signal(s, ask_to_stop)
        try:
            yield
        finally:
            restore()


def evaluate(
    run, data: Dataset, batch: int = 16, calibration: Dataset | None = None, progress=lambda done, total: None
) -> EvalResult:
    """EvalResult of a data set. calibration: examples whose mean scores are the options' prior; the data's own when
    None. progress(done, total): examples of the data set.
    """
    level = prior(dataset_scores(run, calibration, 2 * batch)) if calibration is not None else None
    return evaluate_scores(dataset_scores(run, data, 2 * batch, progress), data.labels, level, data.shared_options)
