"""lr and eps from the model and the first batches themselves (`lr="auto"`, `eps="auto"`), because papers' presets do not transfer.

find_eps: the estimate g of a direction must not depend on the size of the step. Walks eps = 1e-4 * 2^k, k = 0..7, over 16 batches with the
operand as configured, and takes the smallest eps whose g agree with those at 2 eps within 15 % (root mean square). Too small an eps drowns
in operand rounding, too large a one in curvature.

find_lr: lr = C / tr(H_S), with tr(H_S) = mean over probes of (l+ + l- - 2 l0) / e^2, the curvature of the loss along directions of the
selection, at e = eps or CURVATURE_EPS, the larger: a second difference of losses drowns in rounding long before a first one does (on
SmolLM2 in bf16 rounding disturbs it by about 7e-3, which at e = 1.6e-3 is six times what curvature makes of it). A
method that perturbs fewer or tamer weights has a smaller trace and gets the larger lr it can stand. C is the same for all methods. The second
difference of one direction scatters by twice its mean (measured on SmolLM2), so 32 probes are followed by up to 96 more until the standard error is
below 0.3 of the mean; after all of them the mean must still stand out of twice its error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import ArgumentError

LR_CONSTANT = 0.025  # fixed on SmolLM2-135M, see benchmarks/LOG.md
CURVATURE_EPS = 6.4e-3
N_EPS_BATCHES = 16
N_LR_PROBES = 32
MOST_LR_PROBES = 128
RELATIVE_ERROR = 0.3
EPS_GRID = [1e-4 * 2**k for k in range(8)]
AGREEMENT = 0.15
# Diagnostics draw their directions at this query number, which training never uses.
DIAGNOSTIC_QUERY = 65535


@dataclass(frozen=True)
class EpsChoice:
    eps: float
    rms_difference: float  # of g at eps and 2 eps, relative to the rms of g
    agreed: bool


@dataclass(frozen=True)
class LrChoice:
    lr: float
    trace_h: float
    trace_h_error: float  # standard error


def find_eps(engine, batches) -> EpsChoice:
    """batches: core batches, cycled to 16 probes. 32 branch forwards for each eps tried; stops at the first that agrees."""

    def scalars(eps):
        out = []
        for i in range(N_EPS_BATCHES):
            branches = [(DIAGNOSTIC_QUERY, +1, eps), (DIAGNOSTIC_QUERY, -1, eps)]
            plus, minus = (float(x) for x in engine.probe(batches[i % len(batches)], branches, i)["losses"])
            out.append((plus - minus) / (2 * eps))
        return out

    def rms(values):
        return math.sqrt(sum(v * v for v in values) / len(values))

    best = None
    at = scalars(EPS_GRID[0])
    for eps in EPS_GRID:
        twice = scalars(2 * eps)
        scale = rms(at)
        difference = rms([a - b for a, b in zip(at, twice, strict=True)]) / scale if scale > 0 else math.inf
        choice = EpsChoice(eps, difference, difference <= AGREEMENT)
        if choice.agreed:
            return choice
        if math.isfinite(difference) and (best is None or difference < best.rms_difference):
            best = choice
        at = twice
    if best is None:
        raise ArgumentError(
            "[eps] no eps from 1e-4 to 1.28e-2 gives a finite estimate, expected at least one; the loss may not be finite, or pass --eps"
        )
    return best


def find_lr(engine, batches, eps: float) -> LrChoice:
    """batches: core batches, cycled; 32 to 128 probes of three branches each. ArgumentError when the curvature is lost in its own noise."""
    samples = []
    step = max(eps, CURVATURE_EPS)
    while len(samples) < MOST_LR_PROBES:
        for _ in range(N_LR_PROBES):
            i = len(samples)
            batch = batches[i % len(batches)]
            branches = [(DIAGNOSTIC_QUERY, +1, step), (DIAGNOSTIC_QUERY, -1, step)]
            # Noise steps after those of find_eps, so that the same directions are not asked twice. The centre is a probe
            # of its own: three branches at once would need more memory than training does.
            plus, minus = (float(x) for x in engine.probe(batch, branches, N_EPS_BATCHES + i)["losses"])
            centre = float(engine.probe(batch, [(0, +1, 0.0)], 0)["losses"][0])
            samples.append((plus + minus - 2 * centre) / step**2)
        mean = sum(samples) / len(samples)
        error = math.sqrt(sum((s - mean) ** 2 for s in samples) / (len(samples) - 1) / len(samples))
        if error < RELATIVE_ERROR * mean:
            break
    if mean > 2 * error:
        return LrChoice(LR_CONSTANT / mean, mean, error)
    raise ArgumentError(
        f"[lr] tr(H) measured as {mean:.3g} +- {error:.3g}, expected it to stand out of twice its error: the loss is too flat or too"
        " noisy along these directions to choose a learning rate; pass --lr"
    )
