"""What a step and a probe give back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class StepResult:
    """What one step found and cost. Losses are means over the batch's examples; `loss` is the mean over all branches.

    With several queries loss_plus, loss_minus and projected_grad are means over them, and `scalars` holds each one's. skipped: a loss was
    not finite, the step is recorded as skipped and changed nothing.
    """

    step: int
    loss: float
    loss_plus: float
    loss_minus: float
    projected_grad: float
    scalars: tuple[float, ...]
    lr: float
    seconds: float
    stall_s: float
    bytes_read: int
    bytes_written: int
    peak_rss_bytes: int
    peak_anon_bytes: int
    skipped: bool
    parts: dict[str, float]


@dataclass(frozen=True)
class ProbeResult:
    """branches: (query, sign, eps) each; losses fp64 [n_branches, n_examples]; means [n_branches]; scalars [n_queries]."""

    branches: list
    losses: np.ndarray
    means: list
    scalars: tuple
