"""lr and eps from the model and the first batches themselves (`lr="auto"`, `eps="auto"`), because papers' presets do not transfer.

find_eps: the estimate g of a direction must not depend on the size of the step. Walks eps = 1e-4 * 2^k, k = 0..7, over 16 batches with the
operand as configured, and takes the smallest eps whose g agree with those at 2 eps within 15 % (root mean square). Too small an eps drowns
in operand rounding, too large a one in curvature.

find_lr: lr = C / tr(H_S), with tr(H_S) = mean over probes of (l+ + l- - 2 l0) / e^2, the curvature of the loss along directions of the
selection, at e = eps or CURVATURE_EPS, the larger: a second difference of losses drowns in rounding long before a first one does (on
SmolLM2 in bf16 rounding disturbs it by about 7e-3, which at e = 1.6e-3 is six times what curvature makes of it). A
method that perturbs fewer or tamer weights has a smaller trace and gets the larger lr it can stand. C is the same for all methods. The second
difference of one direction scatters by twice its mean (measured on SmolLM2), so 32 probes are followed by up to 96 more until the standard error is
below 0.3 of the mean; after all of them the mean must still stand out of twice its error. Rules whose steps have a size of their own
(Adam, sign, FZOO's scalars) get the lr at which weights drift as they would by SGD (step_scale).
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
# Diagnostics draw their directions at this query number, which training never uses, and always as two-sided pairs: what
# they find does not depend on the method's own query plan.
DIAGNOSTIC_QUERY = 65535


@dataclass(frozen=True)
class EpsTried:
    """One eps of the walk. rms_g: root mean square of g there. rms_difference: of g at eps and 2 eps, relative to it."""

    eps: float
    rms_g: float
    rms_difference: float


@dataclass(frozen=True)
class EpsChoice:
    eps: float
    rms_difference: float  # of g at eps and 2 eps, relative to the rms of g
    agreed: bool
    tried: tuple[EpsTried, ...] = ()  # in the order of the walk


@dataclass(frozen=True)
class LrChoice:
    lr: float | None  # None: the curvature is lost in its noise, or negative
    trace_h: float
    trace_h_error: float  # standard error
    # Second difference / curvature_eps^2 of each probe, in order; their mean is trace_h.
    samples: tuple[float, ...] = ()
    curvature_eps: float = 0.0  # size of the perturbation that they were measured with
    grad_rms: float = 0.0  # root mean square of g along them
    step_scale: float = 1.0  # lr over C / tr(H): of rules and scalars that have a size of their own

    @property
    def verdict(self) -> str:
        """Why there is no lr; "" where there is one."""
        if self.lr is not None:
            return ""
        return "negative" if self.trace_h < -2 * self.trace_h_error else "lost in its noise"


def _losses_of(engine):
    return lambda batch, branches, step: engine.probe(batch, branches, step)["losses"]


def find_eps(engine, batches, progress=lambda done, total: None, losses=None) -> EpsChoice:
    """The smallest eps of EPS_GRID whose g agree with those at 2 eps, or the best there is (agreed False). ArgumentError: none gives finite g.

    batches: core batches, cycled to 16 probes; or what `losses(batch, branches, step)`, which gives a loss a branch, takes for such.
    16 probes of two branches for the first eps, and as many at twice each eps tried; stops at the first that agrees, and takes the
    engine's least_eps where that is larger. progress(probes done, at most); equal at the end."""
    most, done = (len(EPS_GRID) + 1) * N_EPS_BATCHES, 0
    losses = losses or _losses_of(engine)

    def scalars(eps):
        nonlocal done
        out = []
        for i in range(N_EPS_BATCHES):
            branches = [(DIAGNOSTIC_QUERY, +1, eps), (DIAGNOSTIC_QUERY, -1, eps)]
            plus, minus = (float(x) for x in losses(batches[i % len(batches)], branches, i))
            out.append((plus - minus) / (2 * eps))
            done += 1
            progress(done, most)
        return out

    def rms(values):
        return math.sqrt(sum(v * v for v in values) / len(values))

    tried: list[EpsTried] = []
    at = scalars(EPS_GRID[0])
    for eps in EPS_GRID:
        twice = scalars(2 * eps)
        scale = rms(at)
        difference = rms([a - b for a, b in zip(at, twice, strict=True)]) / scale if scale > 0 else math.inf
        tried.append(EpsTried(eps, scale, difference))
        if difference <= AGREEMENT:
            break
        at = twice
    progress(done, done)
    finite = [t for t in tried if math.isfinite(t.rms_difference)]
    if not finite:
        raise ArgumentError(
            "[eps] no eps from 1e-4 to 1.28e-2 gives a finite estimate, expected at least one; the loss may not be finite, or pass --eps"
        )
    # The walk ends at the first that agrees, which is then the best.
    best = min(finite, key=lambda t: t.rms_difference)
    return EpsChoice(
        max(best.eps, engine.least_eps), best.rms_difference, best.rms_difference <= AGREEMENT, tuple(tried)
    )


def step_scale(method, grad_rms: float, eps: float) -> float:
    """By what C / tr(H) is multiplied for this method, so that weights drift as they would by SGD: of a rule that divides by the size of
    the estimate e (rms of g over the root of the queries), that size; of scalars over the deviation of the losses (eps rms of g), that over
    eps; of scalars that are signs, the rms of g; of momentum, 1 over what an estimate counts in all: 1 / (1 - beta1) where moments
    add up, 1 - beta1^h over a window h."""
    parts = method.parts()
    if parts["rule"] in ("adam", "sign"):
        return grad_rms / math.sqrt(method.queries)
    scale = 1.0
    if parts.get("estimator") == "deviation":
        scale = grad_rms * (eps if parts["over_eps"] else 1.0)
    elif parts.get("estimator") == "sign":
        scale = grad_rms
    if parts["rule"] == "momentum":
        # An estimate moves a weight by lr times itself times this, summed over the steps that it counts in.
        counted = 1 - parts["beta1"] ** (parts["window"] or math.inf)
        scale /= counted if parts["damped"] else counted / (1 - parts["beta1"])
    return scale


def measure_lr(engine, batches, eps: float, progress=lambda done, total: None, method=None, losses=None) -> LrChoice:
    """As find_lr, but a curvature that it refuses is a choice without lr. progress(probes done, at most); equal at the end."""
    losses = losses or _losses_of(engine)
    samples: list[float] = []
    squares = 0.0
    step = max(eps, CURVATURE_EPS)
    while len(samples) < MOST_LR_PROBES:
        for _ in range(N_LR_PROBES):
            i = len(samples)
            batch = batches[i % len(batches)]
            branches = [(DIAGNOSTIC_QUERY, +1, step), (DIAGNOSTIC_QUERY, -1, step)]
            # Noise steps after those of find_eps, so that the same directions are not asked twice. The centre is a probe
            # of its own: three branches at once would need more memory than training does.
            plus, minus = (float(x) for x in losses(batch, branches, N_EPS_BATCHES + i))
            centre = float(losses(batch, [(0, +1, 0.0)], 0)[0])
            samples.append((plus + minus - 2 * centre) / step**2)
            squares += ((plus - minus) / (2 * step)) ** 2
            progress(len(samples), MOST_LR_PROBES)
        mean = sum(samples) / len(samples)
        error = math.sqrt(sum((s - mean) ** 2 for s in samples) / (len(samples) - 1) / len(samples))
        if error < RELATIVE_ERROR * mean:
            break
    progress(len(samples), len(samples))
    grad_rms = math.sqrt(squares / len(samples))
    scale = 1.0 if method is None else step_scale(method, grad_rms, eps)
    lr = scale * LR_CONSTANT / mean if mean > 2 * error else None
    return LrChoice(lr, mean, error, tuple(samples), step, grad_rms, scale)


def lost(choice: LrChoice) -> str:
    """The message of a choice without lr."""
    why = (
        "curves downwards along these directions, which says nothing of how far a step may go"
        if choice.verdict == "negative"
        else "is too flat or too noisy along these directions to choose a learning rate"
    )
    return (
        f"[lr] tr(H) measured as {choice.trace_h:.3g} +- {choice.trace_h_error:.3g}, expected it to stand out of twice its error: the loss"
        f" {why}; pass --lr"
    )


def find_lr(engine, batches, eps: float, progress=lambda done, total: None, method=None, losses=None) -> LrChoice:
    """batches, losses: as find_eps; 32 to 128 probes of two branches, and as many of the centre. eps: the run's; curvature is measured at the larger of it and
    CURVATURE_EPS. method: None leaves step_scale at 1. ArgumentError when the curvature is lost in its own noise
    or negative."""
    choice = measure_lr(engine, batches, eps, progress, method, losses)
    if choice.lr is None:
        raise ArgumentError(lost(choice))
    return choice
