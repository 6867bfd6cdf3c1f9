"""bench memory: what a training run holds by purpose over time, measured from outside, beside its budget and its plan."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time

from .. import children, held, options, planning
from ..cli import OK
from ..errors import ArgumentError, BudgetError, PysmezoError
from ..progress import PLAIN_INTERVAL_S, mib

# Rows of the table in options.py that a run on random tokens has a use for.
OPTIONS = (
    "model",
    "task",
    "method",
    "dtype",
    "values",
    "operand",
    "batch",
    "steps",
    "seed",
    "threads",
    "memory_budget",
)
DEFAULT_STEPS, DEFAULT_OUT = 5, "memory.png"


def add_flags(parser) -> None:
    parser.add_argument("--config", metavar="F.yaml", help="flags as YAML; flags on the command line win")
    parser.add_argument(
        "--out", metavar="PICTURE.png", default=DEFAULT_OUT, help="the measurements lie beside it, as .samples.jsonl"
    )
    parser.add_argument(
        "--length", type=int, metavar="N", help=f"tokens of a text (default: {planning.DEFAULT_LENGTH})"
    )
    parser.add_argument(
        "--generation-every", type=int, metavar="K", default=0, help="steps between generations (default: least cost)"
    )
    parser.add_argument(
        "--stream-trained", action="store_true", help="keep what trains on disk even where it would fit"
    )
    options.add_flags(parser, OPTIONS, with_fields=True)


def run(arguments):
    """Takes steps on random tokens in a child, watches it, draws, and says whether it stayed below the line."""
    picture, samples = outputs(arguments.out)
    config = options.read_config(arguments.config) if arguments.config else {}
    s, method = options.settings({**config, **vars(arguments)}, {"steps": DEFAULT_STEPS})
    options.require(s, "model")
    length = planning.length_of(arguments.length, s)
    opened = {
        **options.opening(s),
        "generation_every": arguments.generation_every,
        "stream_trained": arguments.stream_trained,
    }
    p = planning.planner(s["model"], method, **opened)
    words = None
    if s["task"]:
        from .plan import label_options

        words = label_options(s["model"], s["task"])
    planned = planning.plan(p, s["batch"], length, method.n_branches, words)
    if not planned["fits"]:
        raise BudgetError(planning.advice(planned, s["batch"], length))
    asked = {
        "model": s["model"],
        "method": method.to_dict(),
        **{k: s[k] for k in ("batch", "steps", "threads")},
        "length": length,
        "budget_bytes": planned["budget_bytes"],
        "planned": planned,
    }
    # Generations may be larger than memory: beside the picture, since a system's folder for scratch may be memory itself.
    with tempfile.TemporaryDirectory(prefix="pysmezo-memory-", dir=os.path.dirname(picture)) as run_dir:
        child = {
            **{k: asked[k] for k in ("method", "batch", "length", "steps")},
            "vocab_size": p.vocab_size,
            "label_options": words,
            "runtime": {"model": s["model"], "run_dir": run_dir, **opened},
        }
        rows = held.watch(asked, child, samples, Told(s["steps"]))
    result = summed(rows) | {"samples_path": samples, "picture_path": None}
    try:
        children.run("_draw_memory", [samples, picture])
        result["picture_path"] = drawn = picture
    except PysmezoError as e:
        drawn = f"none: {e}"
    print("\n".join([*lines(result), f"measurements  {samples}", f"picture       {drawn}"]), flush=True)
    return OK, result


def outputs(out: str) -> tuple[str, str]:
    """(the picture, the measurements beside it), absolute."""
    picture = os.path.abspath(os.path.expanduser(out))
    if not picture.endswith(".png"):
        raise ArgumentError(f"[bench memory] --out {out!r}, expected a name that ends in .png")
    if not os.path.isdir(os.path.dirname(picture)):
        raise ArgumentError(f"[bench memory] --out {out!r}, expected a folder that exists")
    return picture, picture.removesuffix(".png") + ".samples.jsonl"


class Told:
    """Says on standard error how far the run is, not too often."""

    def __init__(self, steps: int):
        self._last, self._steps = -PLAIN_INTERVAL_S, steps

    def __call__(self, row: dict) -> None:
        now = time.monotonic()
        last = row.get("phase") == f"step {self._steps}"
        if row["type"] != "held" or (now - self._last < PLAIN_INTERVAL_S and not last):
            return
        self._last = now
        what = f"{row['phase']} of {self._steps} in {row['seconds']:.2f} s" if "seconds" in row else "opened"
        print(f"{what}, peak {mib(row['peak_rss_bytes'])}", file=sys.stderr, flush=True)


def summed(rows: list[dict]) -> dict:
    """The result: bytes at the largest sample by purpose, and medians over the steps."""
    opened, *steps = [r for r in rows if r["type"] == "held"]
    resets = next(r for r in rows if r["type"] == held.OPENING)["peak_is_reset"]
    parts = held.purposes(rows)
    measured = [p for p in parts if p[0]["phase"] != held.STARTING]
    largest, by_purpose = max(measured, key=lambda p: held.resident_bytes(p[0]))
    # A peak that the system does not let us reset is that of the whole process, its start included.
    peak = steps[-1]["peak_rss_bytes"] if resets else held.resident_bytes(largest)
    at_open, budget = opened["rss_at_open_bytes"], rows[0]["budget_bytes"]
    group = [row["cgroup_bytes"] for row, _ in parts if "cgroup_bytes" in row]
    return {
        "budget_bytes": budget,
        "rss_at_open_bytes": at_open,
        "peak_rss_bytes": peak,
        "peak_is_sampled": not resets,
        "within_budget": None if budget is None else peak - at_open <= budget,
        "predicted_process_bytes": at_open + rows[0]["planned"]["predicted_peak_bytes"],
        "bytes_by_purpose": by_purpose,
        "predicted_by_purpose": rows[0]["planned"]["bytes_by_purpose"],
        "cgroup_peak_bytes": max(group) if group else None,
        "steps": len(steps),
        "step_s": statistics.median(r["seconds"] for r in steps),
        "stall_s": statistics.median(r["stall_s"] for r in steps),
        "bytes_read_per_step": round(statistics.median(r["bytes_read"] for r in steps)),
        "bytes_written_per_step": round(sum(r["bytes_written"] for r in steps) / len(steps)),
    }


def lines(r: dict) -> list[str]:
    def row(name: str, measured: int | None, plan: int | None) -> str:
        cells = (f"{'-' if n is None else f'{n / 2**20:.1f}':>10}" for n in (measured, plan))
        return f"{name:<18}{''.join(cells)}"

    found, plan = r["bytes_by_purpose"], r["predicted_by_purpose"]
    out = [f"{'MiB':<18}{'measured':>10}{'planned':>10}"]
    out += [
        row(name, found.get(name), plan.get(name)) for name in {**found, **plan} if found.get(name) or plan.get(name)
    ]
    out.append(row("sum", sum(found.values()), r["predicted_process_bytes"]))
    budget = ", no budget" if r["budget_bytes"] is None else f" + {mib(r['budget_bytes'])} of budget"
    how = " (largest sample: this system does not reset peaks)" if r["peak_is_sampled"] else ""
    peak, at_open = r["peak_rss_bytes"], r["rss_at_open_bytes"]
    where = ""
    if r["budget_bytes"] is not None:
        spare = at_open + r["budget_bytes"] - peak
        where = f", {abs(spare) / 2**20:.1f} MiB {'below' if r['within_budget'] else 'ABOVE'} the line"
    group = "not measured: no file of it that this process may read"
    if r["cgroup_peak_bytes"] is not None:
        group = f"{mib(r['cgroup_peak_bytes'])} at most, with page cache and every other process in it"
    return [
        *out,
        f"process = {mib(at_open)} at open{budget}; peak {mib(peak)} (predicted {mib(r['predicted_process_bytes'])})"
        f"{where}{how}",
        f"step          {r['step_s']:.3g} s, {r['stall_s']:.2g} s of it waiting for the disk, {mib(r['bytes_read_per_step'])} read",
        f"control group {group}",
    ]
