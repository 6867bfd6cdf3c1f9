"""Many queries in one visit against as many steps of one query, streamed, the page cache of the model dropped before each
step: all branches of a step share one reading of the weights.

Both runs have the same budget, about a quarter of the weights, and are processes of their own. A repetition is all steps
of the one and a step of the other.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import NamedTuple

from . import common, streaming_models, streaming_rows
from .methods_rows import RANK
from .streaming_models import NotRun, drop_cache
from .streaming_rows import MIB, Bench, Side, ids_of, quarter

WARM_UP = 2


class Case(NamedTuple):
    method: dict
    queries: int = 16
    texts: int = 1
    tokens: int = 64
    state: bool = False  # trains working copies, whose generations need disk

    @property
    def label(self) -> str:
        kind, rank = self.method["kind"], self.method["rank"]
        return f"{kind}, rank {rank}, {self.queries} queries, {self.texts} x {self.tokens}"

    def row(self, spec, queries: int) -> streaming_rows.Row:
        return streaming_rows.Row("queries", spec, self.texts, self.tokens, self.method | {"queries": queries})


# The second is beside what is asked: where there is less to compute than to read.
CASES = (
    Case({"kind": "tezo", "rank": RANK}),
    Case({"kind": "tezo", "rank": RANK}, tokens=16),
    Case({"kind": "lozo", "rank": 2}, state=True),
)


def budget_of(case: Case, row: streaming_rows.Row, model: Path, threads: int) -> int:
    """A quarter of the model, or what a step of all branches needs at least."""
    from pysmezo import planning
    from pysmezo.methods import from_dict

    from .streaming_child import one_label

    p = planning.planner(model, from_dict(row.method), memory_budget=1 << 40, threads=threads)
    found = p.plan(planning.core_batch(one_label(ids_of(row, model))), 2 * case.queries)
    return max(quarter(model), found["smallest_budget_bytes"])


def cold(side: Side, model: Path) -> dict:
    drop_cache(model)
    return side.step()


def measure_case(bench: Bench, case: Case, spec, model: Path) -> dict:
    each, all_at_once = case.row(spec, 1), case.row(spec, case.queries)
    budget = budget_of(case, all_at_once, model, bench.threads)
    with bench.models.temporary() as at:
        with (
            Side(bench, model, each, Path(at) / "each", budget=budget) as one,
            Side(bench, model, all_at_once, Path(at) / "all", budget=budget) as many,
        ):
            for _ in range(WARM_UP):
                cold(one, model)
                cold(many, model)
            unit_bytes = max(1, one.ask("report")["held"]["ring"] // 8 // MIB) * MIB
            repetitions, rates = [], []
            for r in range(bench.pairs):
                rates.append(streaming_models.disk_rate(model, unit_bytes))
                steps = [cold(one, model) for _ in range(case.queries)]
                repetitions.append((steps, cold(many, model)))
                common.note(f"queries, {case.label}: repetition {r + 1} of {bench.pairs}")
            peaks = [side.ask("report")["process"] / MIB for side in (one, many)]
    apart = [sum(s["seconds"] for s in steps) for steps, _ in repetitions]
    shared = [step["seconds"] for _, step in repetitions]
    every = [s for steps, _ in repetitions for s in steps]
    ratios = [b / a for a, b in zip(apart, shared, strict=True)]
    out = {} if None in rates else {"disk_mb_s": statistics.median(rates) / 1e6}
    return out | {
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "ratio_of_sums": sum(shared) / sum(apart),  # with every generation that was written
        "one_visit_s": statistics.median(shared),
        "steps_s": statistics.median(apart),
        "one_visit_stall_s": statistics.median(step["stall_s"] for _, step in repetitions),
        "steps_stall_s": statistics.median(sum(s["stall_s"] for s in steps) for steps, _ in repetitions),
        "one_visit_read_mib": statistics.median(step["read"] for _, step in repetitions) / MIB,
        "step_read_mib": statistics.median(s["read"] for s in every) / MIB,
        "written_mib": (sum(s["written"] for s in every) + sum(s["written"] for _, s in repetitions)) / MIB,
        "budget_mib": budget / MIB,
        "one_visit_process_mib": peaks[1],
        "step_process_mib": peaks[0],
        "repetitions": len(repetitions),
    }


def measure(bench: Bench, cases: list[Case], spec, model_of, save) -> dict[str, dict]:
    """Figures by label; save(label, figures) of each as soon as it is measured. model_of(more_bytes): the model's folder,
    made if it is not there."""
    found = {}
    for case in cases:
        try:
            # Two runs, of each the newest generation and the next.
            model = model_of(4 * spec.state_bytes(1.0) if case.state else 0)
            found[case.label] = measure_case(bench, case, spec, model)
        except (NotRun, RuntimeError, OSError) as e:
            found[case.label] = {"not_run": str(e) or type(e).__name__}
        common.note(f"queries, {case.label}: {found[case.label]}")
        save(case.label, found[case.label])
    return found
