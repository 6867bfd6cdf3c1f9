"""Whether a run learns, from what its last steps found: numbers that stand beside StepResult's in each step's line of metrics.jsonl.

| key | of a step |
|---|---|
| loss_mean, loss_mean_error | mean loss of the last 100 steps, and its standard error |
| loss_change, loss_change_z | mean of the newer half of them less that of the older, and the same in its standard errors: below -2 it learns, above 2 it falls apart |
| grad_rms | root mean square of the scalars g of those steps: growing with a loss that does not fall, lr or eps is too large |
| step_rms | root mean square by which this step changes a trained weight, weight decay apart: beside eps and the weights' own size; of LeZO: one in a layer that takes part |

step_rms follows from the scalars alone, as directions are independent and of variance 1: exact in expectation for sgd and sign; for momentum
from the last 100 steps; for adam the root mean square of m over the root of the mean of v, close once v averages some steps.

Skipped steps are left out (their step_rms is 0). null: too few steps yet, or not to be said: step_rms of HiZOO, which hangs on its curvature, and of LOZO-M, whose
average turns with its factors.
The window is a function of the last lines of metrics.jsonl, so a run that goes on has the numbers that it would have had.
"""

from __future__ import annotations

import math
from collections import deque

WINDOW = 100  # steps
LEAST = 20  # of them before a trend is told


def _number(x) -> bool:
    return isinstance(x, (int, float)) and abs(x) < 1e300


def _mean_and_error2(values: list[float]) -> tuple[float, float]:
    """(mean, squared standard error) of at least two values."""
    n = len(values)
    mean = sum(values) / n
    return mean, sum((v - mean) * (v - mean) for v in values) / (n - 1) / n


class Signals:
    def __init__(self, parts: dict):
        """parts: of the method. Scalars after those of the queries are no g."""
        self._parts = parts
        self._window: deque[tuple[float, float, int]] = deque(maxlen=WINDOW)  # loss, sum of g^2, number of scalars

    def see(self, line: dict) -> None:
        """A step's line, StepResult's fields by name: it enters the window."""
        scalars = line.get("scalars")
        scalars = scalars[: self._parts["queries"]] if isinstance(scalars, (list, tuple)) else ()
        if not line.get("skipped") and _number(line.get("loss")) and all(map(_number, scalars)):
            self._window.append((line["loss"], sum(g * g for g in scalars), len(scalars)))

    def after(self, line: dict) -> dict:
        """The numbers of the step of this line, by key. About 25 us."""
        self.see(line)
        out = dict.fromkeys(("loss_mean", "loss_mean_error", "loss_change", "loss_change_z", "grad_rms", "step_rms"))
        size = 0.0 if line["skipped"] else self._step_size(line["step"])
        out["step_rms"] = None if size is None else line["lr"] * size
        n_scalars = sum(n for _, _, n in self._window)
        if n_scalars:
            out["grad_rms"] = math.sqrt(sum(s for _, s, _ in self._window) / n_scalars)
        losses = [loss for loss, _, _ in self._window]
        if len(losses) < 2:
            return out
        mean, error2 = _mean_and_error2(losses)
        out |= {"loss_mean": mean, "loss_mean_error": math.sqrt(error2)}
        if len(losses) < LEAST:
            return out
        half = len(losses) // 2
        (older, a), (newer, b) = _mean_and_error2(losses[:half]), _mean_and_error2(losses[-half:])
        error = math.sqrt(a + b)
        out |= {"loss_change": newer - older, "loss_change_z": (newer - older) / error if error > 0 else None}
        return out

    def _step_size(self, step: int) -> float | None:
        """Root mean square of the step at lr 1, of the rules as methods/base.py has them."""
        if not self._window:
            return None
        rule, window = self._parts["rule"], self._parts["window"]
        # Mean squares of the estimates mean_q(g_q z_q), the newest first.
        squares = [total / (n * n) if n else 0.0 for _, total, n in reversed(self._window)]
        if rule == "sgd":
            return math.sqrt(squares[0])
        if rule == "sign":
            return 1.0
        # LOZO-M's average loses most of itself wherever its factors change.
        if rule not in ("momentum", "adam") or (rule == "momentum" and self._parts.get("low_rank") == "uv"):
            return None
        n_averaged = min(step, window or step)
        squares = squares[: window or WINDOW]
        beta1, beta2 = self._parts["beta1"], self._parts["beta2"]
        add = 1 - beta1 if self._parts["damped"] or rule == "adam" else 1.0
        m = add * math.sqrt(sum(beta1 ** (2 * k) * s for k, s in enumerate(squares)))
        if rule == "momentum":
            return m
        shares = [beta2**k for k in range(len(squares))]
        v = sum(share * s for share, s in zip(shares, squares, strict=True)) / sum(shares)
        if self._parts["corrected"]:
            m /= 1 - beta1**n_averaged
        else:
            v *= 1 - beta2**n_averaged
        return m / (math.sqrt(v) + self._parts["adam_eps"])
