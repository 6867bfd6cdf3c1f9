"""What a step and a probe give back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class StepResult:
    """What one step found and cost. Losses are in nats, averaged as the run's reduction says; `loss` is the mean over all branches.

    With several queries loss_plus, loss_minus and projected_grad are means over them, and `scalars` holds each one's; one-sided, loss_minus is the
    centre's. HiZOO: scalars = (g, its curvature). lr: of this step, its schedule in it. skipped: a loss was not finite, the step is recorded as
    skipped and changed nothing. seconds: probe and commit; stall_s of them waiting for the disk. peak_rss_bytes: of the process since the run was
    opened; peak_anon_bytes: the most anonymous memory seen at the end of a step. parts: seconds by part of the forward, and "commit".
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
    """branches: (query, sign, eps) each; losses fp64 [n_branches, n_examples]; means fp64 [n_branches], by the run's reduction;
    scalars: one a query, and HiZOO's curvature after it."""

    branches: list
    losses: np.ndarray
    means: list
    scalars: tuple
