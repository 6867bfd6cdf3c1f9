"""Whether a run learns, from what its last steps found: numbers that stand beside StepResult's in each step's line of metrics.jsonl.

| key | of a step |
|---|---|
| loss_mean, loss_mean_error | mean loss of the last 100 steps, and its standard error |
| loss_change, loss_change_z | mean of the newer half of them less that of the older, and the same in its standard errors: below -2 it learns, above 2 it falls apart |
| grad_rms | root mean square of the scalars g of those steps: growing with a loss that does not fall, lr or eps is too large |
| step_rms | root mean square by which this step changed a trained weight, weight decay apart: beside eps and the weights' own size |

Skipped steps are left out (their step_rms is 0). null: too few steps yet, or not to be said: step_rms of a rule other than sgd. The window is
a function of the last lines of metrics.jsonl, so a run that goes on has the numbers that it would have had.
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
    def __init__(self, rule: str = "sgd", queries: int | None = None):
        """rule, queries: of the method. Scalars after those of the queries are no g; None: all are."""
        self._sgd = rule == "sgd"
        self._queries = queries
        self._window: deque[tuple[float, float, int]] = deque(maxlen=WINDOW)  # loss, sum of g^2, number of scalars

    def see(self, line: dict) -> None:
        """A step's line, StepResult's fields by name: it enters the window."""
        scalars = line.get("scalars")
        scalars = scalars[: self._queries] if isinstance(scalars, (list, tuple)) else ()
        if not line.get("skipped") and _number(line.get("loss")) and all(map(_number, scalars)):
            self._window.append((line["loss"], sum(g * g for g in scalars), len(scalars)))

    def after(self, line: dict) -> dict:
        """The numbers of the step of this line, by key. About 25 us."""
        self.see(line)
        out = dict.fromkeys(("loss_mean", "loss_mean_error", "loss_change", "loss_change_z", "grad_rms", "step_rms"))
        if self._sgd:
            out["step_rms"] = 0.0 if line["skipped"] else _step_rms(line["lr"], line["scalars"])
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


def _step_rms(lr: float, scalars) -> float:
    """Of lr * mean_q(g_q z_q) for independent directions z_q of variance 1 on what trains."""
    return lr * math.sqrt(sum(g * g for g in scalars)) / len(scalars) if scalars else 0.0
