"""Trainer: batches, learning-rate schedule, evaluation and metrics around Runtime.train_step.

What it does at a step is a function of the step's number alone, so a run that is opened again goes on as if it had
never stopped.
"""

from __future__ import annotations

import math
import signal
import threading
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np

from . import metrics
from .autotune import N_LR_PROBES
from .data import Dataset
from .errors import ArgumentError
from .evaluate import EvalResult, evaluate_scores, prior

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


def check_warmup(warmup: int, steps: int) -> None:
    if warmup > steps:
        raise ArgumentError(f"[trainer] warmup {warmup}, expected at most steps, which is {steps}")


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
    interrupted: a signal or Trainer.stop ended it early, everything saved.
    """

    steps: int
    steps_skipped: int
    train_seconds: float
    peak_rss_bytes: int
    interrupted: bool


class Trainer:
    """Trains `run` on `train` (a Dataset) up to step `steps` of the run.

    eval: a Dataset looked at every `eval_every` steps and after the last one. schedule, warmup: see schedule_factor;
    warmup counts steps. callbacks: objects with any of on_measure(trainer), on_measured(trainer) (around what is "auto"), on_start(trainer), on_step(trainer, result),
    on_eval(trainer, result, step), on_end(trainer, fit_result).

    SIGINT and SIGTERM, when fit runs in the main thread, end it after the step in hand; a second one ends the process
    as usual.
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
        check_warmup(warmup, steps)
        self.run, self.train, self.eval = run, train, eval
        self.steps, self.batch, self.schedule, self.warmup = steps, batch, schedule, warmup
        self.eval_every, self.callbacks = eval_every, tuple(callbacks)
        self.stop = False

    def fit(self) -> FitResult:
        run = self.run
        writer = metrics.Writer(run.run_dir, run.step) if run.run_dir else None
        seconds, peak, skipped = 0.0, 0, 0
        for line in metrics.lines(run.run_dir) if run.run_dir else ():
            if "type" not in line:
                seconds += line["seconds"]
                peak = max(peak, line["peak_rss_bytes"])
                skipped += line["skipped"]
        self.stop = False
        try:
            if run.step < self.steps and not run.started:
                # On the run's own first batches. Not under the signal handlers: nothing is committed yet, so an
                # interrupt may end it at once.
                first = self.train.batches(run.seed, self.batch) if run.is_auto else iter(())
                self._tell("on_measure", self)
                run.resolve_auto(list(islice(first, N_LR_PROBES)))
                self._tell("on_measured", self)
            with self._signals():
                self._tell("on_start", self)
                batches = self.train.batches(run.seed, self.batch, run.step)
                while run.step < self.steps and not self.stop:
                    factor = schedule_factor(self.schedule, run.step, self.steps, self.warmup)
                    result = run.train_step(next(batches), lr_scale=factor)
                    seconds += result.seconds
                    peak = max(peak, result.peak_rss_bytes)
                    skipped += result.skipped
                    if writer:
                        writer.write(asdict(result))
                    self._tell("on_step", self, result)
                    due = self.eval_every and run.step % self.eval_every == 0
                    # Also where a signal asks to stop: the run that goes on would not come by here again.
                    if self.eval is not None and (due or run.step == self.steps):
                        self._evaluate(writer)
                run.flush()
        finally:
            if writer:
                writer.close()
        done = FitResult(run.step, skipped, seconds, peak, run.step < self.steps)
        self._tell("on_end", self, done)
        return done

    def _evaluate(self, writer) -> None:
        result = evaluate(self.run, self.eval, self.batch)
        if writer:
            writer.write({"type": "eval", "step": self.run.step, **asdict(result)})
        self._tell("on_eval", self, result, self.run.step)

    def _tell(self, name: str, *arguments) -> None:
        for callback in self.callbacks:
            if hasattr(callback, name):
                getattr(callback, name)(*arguments)

    @contextmanager
    def _signals(self):
        """First signal: stop after this step. The old handlers are put back then, so a second one is not swallowed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        old = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

        def restore():
            for s, handler in old.items():
                signal.signal(s, handler)

        def ask_to_stop(number, frame):
            self.stop = True
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
