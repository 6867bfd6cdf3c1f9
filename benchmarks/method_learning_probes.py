"""Diagnostics of a row before it trains: eps, the size of the gradient that it sees, the curvature along its
directions, what operand rounding leaves, the lr that follows."""

from __future__ import annotations

import math
import statistics

from . import learning
from .method_learning_rows import LEAST_CURVED_EPS, OVER_NF4, Work, base_of, direction, method_of

OF_DIRECTION = (
    "eps eps_rms_difference eps_agreed n_probes curvature_eps trace_h trace_h_error grad_rms_there grad_rms "
    "grad_square grad_square_error survival"
).split()


def diagnose(work: Work, task: str, name: str) -> dict:
    """Rows of one direction share their probes: they would be the same to the bit."""

    def make():
        method = method_of(work, name)
        what = direction(method, "nf4" if name in OVER_NF4 else "bf16")
        measured = [r for p, r in work.done.items() if p.startswith(f"diagnose/{task}/") and r["direction"] == what]
        if measured:
            row = {k: measured[0][k] for k in (*OF_DIRECTION, "probes_of")}
            with opened(work, method, base_of(work, name)) as run:
                row["density"] = learning.density(run, False)
        else:
            row = measure(work, task, method, base_of(work, name)) | {"probes_of": name}
        if method.parts()["plan"] == "curved":
            row["eps"] = max(row["eps"], LEAST_CURVED_EPS)
        row |= {"direction": what, "branches": method.n_branches, "queries": method.queries}
        return row | lr_of(method, row)

    return work.piece(f"diagnose/{task}/{name}", make)


def opened(work: Work, method, base):
    return learning.open_run(work, method, learning.TUNE_SEED, "auto", "auto", "nearest", None, base)


def measure(work: Work, task: str, method, base) -> dict:
    """find_eps and find_lr as autotune has them, then 32 probes of g at that eps, on the batches of the tuning seed."""
    from pysmezo import autotune

    with opened(work, method, base) as run:
        batches = work.data(task)["train"].batches(learning.TUNE_SEED, learning.BATCH)
        core = [run._pack(next(batches))[1] for _ in range(autotune.N_LR_PROBES)]
        engine = run._engine
        found = autotune.find_eps(engine, core[: autotune.N_EPS_BATCHES])
        curvature = autotune.measure_lr(engine, core, found.eps)
        squares = []
        for i, batch in enumerate(core):
            branches = [(autotune.DIAGNOSTIC_QUERY, sign, found.eps) for sign in (+1, -1)]
            plus, minus = (float(x) for x in engine.probe(batch, branches, autotune.N_EPS_BATCHES + i)["losses"])
            squares.append(((plus - minus) / (2 * found.eps)) ** 2)
        return {
            "eps": found.eps,
            "eps_rms_difference": found.rms_difference,
            "eps_agreed": found.agreed,
            "n_probes": len(curvature.samples),
            "curvature_eps": curvature.curvature_eps,
            "trace_h": curvature.trace_h,
            "trace_h_error": curvature.trace_h_error,
            "grad_rms_there": curvature.grad_rms,
            "grad_rms": math.sqrt(statistics.fmean(squares)),
            "grad_square": statistics.fmean(squares),
            "grad_square_error": statistics.stdev(squares) / math.sqrt(len(squares)),
            "survival": engine.surviving_perturbation(found.eps, 1),
            "density": learning.density(run, False),
        }


def lr_of(method, row: dict) -> dict:
    """{lr, lr_rule}: autotune's; where the curvature is lost in its noise, what twice its error above would allow;
    where it is negative even so, learning.START_LR times the row's step scale."""
    from pysmezo import autotune

    trace, error = row["trace_h"], row["trace_h_error"]
    scale = autotune.step_scale(method, row["grad_rms_there"], row["eps"])
    if trace > 2 * error:
        return {"lr": scale * autotune.LR_CONSTANT / trace, "lr_rule": "find-lr"}
    if trace + 2 * error > 0:
        return {"lr": scale * autotune.LR_CONSTANT / (trace + 2 * error), "lr_rule": "cautious"}
    return {"lr": scale * learning.START_LR, "lr_rule": "a guess"}
