"""Progress of a run on standard error: one line kept up to date on a terminal, a plain line now and then elsewhere. A
Trainer callback.
"""

from __future__ import annotations

import sys
import time

from .memory import peaks

# Below this much of a perturbation surviving operand rounding, the estimate is mostly of another direction.
LEAST_SURVIVING = 0.9
# Away from a terminal: at least this long between two lines.
PLAIN_INTERVAL_S = 10.0
SMOOTHING = 0.1


def clock(seconds: float) -> str:
    minutes, s = divmod(int(seconds + 0.5), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def mib(n_bytes: float) -> str:
    return f"{n_bytes / 2**20:.0f} MiB"


def describe(run) -> str:
    """eps and lr of a run, and how they were chosen."""
    c = run.choices
    eps, lr = f"eps {run.eps:.3g}", f"lr {run.lr:.3g}"
    if "eps" in c:
        agrees = "" if c["eps_agreed"] else ", more than 0.15: the best there was"
        eps += f" (g at eps and 2 eps differ by {c['eps_rms_difference']:.2f}{agrees})"
    if "lr" in c:
        lr += f" (tr(H) {c['trace_h']:.3g} +- {c['trace_h_error']:.2g})"
    return f"{eps}, {lr}"


def survival(share: float) -> str:
    """What operand rounding leaves of a perturbation; where it is little, what keeps more."""
    advice = "" if share >= LEAST_SURVIVING else ": little; a larger eps, or --operand dither or split, keeps more"
    return f"{share:.3f} of it survives operand rounding (cos^2){advice}"


def learning(signals: dict) -> str:
    """The trend of the loss over its window, with its size in standard errors; the scalars' and the step's root mean square."""
    change, z = signals.get("loss_change"), signals.get("loss_change_z")
    out = "" if z is None else f" ({change:+.3f}, {abs(z):.1f} se)"
    for name, key, digits in (("g", "grad_rms", 3), ("step", "step_rms", 2)):
        if signals.get(key) is not None:
            out += f", {name} {signals[key]:.{digits}g}"
    return out


def streaming(result) -> str:
    """What reading weights did in a step; nothing where none were read."""
    if not result.bytes_read:
        return ""
    seconds = max(result.seconds, 1e-9)
    return f", {result.bytes_read / seconds / 1e6:.0f} MB/s, {100 * result.stall_s / seconds:.0f} % stall"


def bar(**how):
    """A line on a terminal that is kept up to date."""
    from tqdm import tqdm

    # Always looking at the clock (miniters): the thread that would see to slow work goes by the clock below.
    out = tqdm(dynamic_ncols=True, miniters=1, **how)
    # Its own clock is the date: set forward or back, the rate is absurd or the line stands still.
    out._time = time.monotonic
    out.start_t = out.last_print_t = time.monotonic()
    return out


class Progress:
    """Rate, time left, loss with its change over the last 100 steps, root mean square of g and of the step, peak memory, the newest evaluation."""

    def __init__(self, stream=None, terminal: bool | None = None):
        self._out = stream or sys.stderr
        self._terminal = self._out.isatty() if terminal is None else terminal
        self._bar, self._loss, self._eval, self._survival = None, None, "", None

    def on_measure(self, trainer) -> None:
        self._measuring = time.monotonic()
        if trainer.run.is_auto:
            print("measuring what is auto of eps and lr on the first batches", file=self._out, flush=True)

    def on_measured(self, trainer) -> None:
        run = trainer.run
        took = f" ({clock(time.monotonic() - self._measuring)})" if run.choices else ""
        print(describe(run) + took, file=self._out, flush=True)

    def on_start(self, trainer) -> None:
        self._first, self._start, self._last = trainer.run.step, time.monotonic(), -PLAIN_INTERVAL_S
        if 0 < trainer.run.step < trainer.steps:
            told = f"going on after step {trainer.run.step} of {trainer.steps}; the first step replays the journal"
            print(told, file=self._out, flush=True)
        if self._terminal and trainer.run.step < trainer.steps:
            self._bar = bar(
                total=trainer.steps,
                initial=trainer.run.step,
                unit="step",
                file=self._out,
                mininterval=0.2,
                smoothing=SMOOTHING,
            )

    def on_survival(self, trainer, share: float) -> None:
        # Once, and again when it has become little.
        if self._survival is None or share < LEAST_SURVIVING <= self._survival:
            text = f"perturbation: {survival(share)}"
            if self._bar is not None:
                self._bar.write(text, file=self._out)
            else:
                print(text, file=self._out, flush=True)
        self._survival = share

    def on_step(self, trainer, result) -> None:
        if not result.skipped:
            self._loss = result.loss if self._loss is None else self._loss + SMOOTHING * (result.loss - self._loss)
        loss = "no finite loss yet" if self._loss is None else f"loss {self._loss:.4f}"
        text = f"{loss}{learning(trainer.signals)}, peak {mib(result.peak_rss_bytes)}{streaming(result)}{self._eval}"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(1)
            return
        now, step = time.monotonic(), trainer.run.step
        if now - self._last >= PLAIN_INTERVAL_S or step == trainer.steps:
            self._last = now
            rate = (step - self._first) / max(now - self._start, 1e-9)
            left = clock((trainer.steps - step) / rate)
            print(f"step {step}/{trainer.steps}, {rate:.2f} steps/s, {left} left, {text}", file=self._out, flush=True)

    def on_eval(self, trainer, result, step) -> None:
        self._eval = f", eval {result.accuracy:.3f}"

    def on_end(self, trainer, result) -> None:
        if self._bar is not None:
            self._bar.close()


class WorkProgress:
    """Progress of work of a known amount: call it with (done, total). unit: what it is counted in, "B" for bytes."""

    def __init__(self, verb: str, unit: str = "B", stream=None, terminal: bool | None = None):
        self._verb, self._unit, self._out = verb, unit, stream or sys.stderr
        self._terminal = self._out.isatty() if terminal is None else terminal
        self._bar, self._first, self._last = None, None, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        if self._terminal:
            if self._bar is None:
                scale = {"unit_scale": True, "unit_divisor": 1024} if self._unit == "B" else {}
                self._bar = bar(total=total, unit=self._unit, desc=self._verb, file=self._out, **scale)
            self._bar.set_postfix_str(f"peak {mib(peaks()[0])}", refresh=False)
            self._bar.update(done - self._bar.n)
            if done == total:
                self._bar.close()
        elif now - self._last >= PLAIN_INTERVAL_S or (done == total and now > self._first[0]):
            self._last = now
            rate = (done - self._first[1]) / max(now - self._first[0], 1e-9)
            left = clock((total - done) / max(rate, 1e-9))
            print(
                f"{self._verb} {self._amount(done)} of {self._amount(total)}{self._unit_name()}, {self._amount(rate)}/s, "
                f"{left} left, peak {mib(peaks()[0])}",
                file=self._out,
                flush=True,
            )

    def _amount(self, n: float) -> str:
        return mib(n) if self._unit == "B" else f"{n:.0f}"

    def _unit_name(self) -> str:
        return "" if self._unit == "B" else f" {self._unit}s"
