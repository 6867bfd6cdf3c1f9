"""`python -m benchmarks.streaming [--demo DIR] [--only TEXT] [--json]`: what streaming costs, and what a process takes.

read-only    a streamed step against a resident one, in turns, at a budget of a quarter of the model; the page cache of
             the streamed files is dropped before each of its steps, and what the disk needs for the bytes is measured
             between them. Both runs see the same batch and seeds, and their losses must be the same bits.
generations  the same for SparseMeZO with its state streamed: the mean of k steps, one of which writes a generation; k
             is what `plan` chooses by the rates that `pysmezo doctor` kept, or by rates measured then.
accelerate   our step against two forwards of a transformers model offloaded to disk by accelerate, in turns, at a
             budget that makes our process no larger than theirs; the page cache is dropped before each forward, and
             what the disk gave them is told.
growth       the peak at 8, 16 and 32 layers, with a ring of one size, the batch at once and no unit that stays.
memory       the peak (VmHWM) of a whole process that takes a few steps within a budget.

Rows are processes of their own. A finished row is appended to results/streaming.jsonl at once and not measured again on
such a machine, but with --again. Models have random weights, but SmolLM2 with --demo; large ones are deleted when no
later row needs them. Each command of a growth or memory row is printed, to be run under a hard limit by hand.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path

from . import common, streaming_models
from .streaming_models import NotRun, Spec
from .streaming_rows import MEASURE, MIB, Bench, Row

FILE = "streaming.jsonl"
FAILED = "FAILED"
SPARSE = {"kind": "sparse-mezo", "sparsity": 0.75}
RATIO, COMPUTE_BOUND, CEILING, WITH_GENERATIONS, TIMES_FASTER, GROWTH = 1.05, 2.0, 1.15, 1.25, 5.0, 1.02
GROWTH_LAYERS = (8, 16, 32)

SMALL, LLAMA_1B = Spec("smollm2-135m", "bf16"), Spec("llama-1b", "bf16")
LLAMA_7B, LLAMA_30B = Spec("llama-7b", "nf4"), Spec("llama-30b", "nf4-dq")
GROWTH_ROWS = tuple(
    Row("growth", LLAMA_7B if n == 32 else LLAMA_7B._replace(layers=n), label=f"{n} layers, 4 x 64")
    for n in GROWTH_LAYERS
)
# Rows of a model follow each other, so that it can be deleted.
ROWS = (
    Row("read-only", SMALL, 16, 64),
    Row("read-only", SMALL, 1, 16),
    Row("generations", SMALL, 16, 64, SPARSE),
    Row("memory", Spec("smollm2-135m", "nf4"), 16, 0, SPARSE, 128e6 / MIB, 84, 6, 2, "batch 16 of the demo's task"),
    Row("read-only", LLAMA_1B, 4, 64),
    Row("read-only", LLAMA_1B, 1, 16),
    Row("generations", LLAMA_1B, 4, 64, SPARSE),
    Row("accelerate", LLAMA_1B, 4, 64),
    Row("accelerate", LLAMA_1B, 1, 16),
    *GROWTH_ROWS,
    Row("memory", LLAMA_7B, limit=400, budget=360),
    Row("memory", LLAMA_7B, method=SPARSE, limit=600, budget=560, steps=3, generation_every=2),
    Row("memory", LLAMA_7B._replace(dtype="bf16"), limit=600, budget=560),
    Row("memory", LLAMA_30B, limit=800, budget=760),
)


def targets(rows: list[Row], found: dict[str, dict]) -> list[dict]:
    """The lines of the table of what must be shown for these rows, from what was found by name."""
    out = []

    def add(row: Row, what: str, key: str, **limit) -> None:
        r = found.get(row.name, {"not_run": "not measured"})
        why = r.get("not_run", f"no {key}: this file system cannot be read past the page cache")
        out.append(common.target(f"{row.name}: {what}", r.get(key), why=why, **limit))

    for row in (r for r in rows if r.kind != "growth"):
        if row.kind == "read-only":
            r = found.get(row.name, {})
            if r.get("resident_s", 0) < COMPUTE_BOUND * r.get("io_s", 0):
                add(row, "streamed step / the larger of reading and resident step", "over_ceiling", at_most=CEILING)
            else:
                add(row, "streamed / resident step", "ratio" if "io_s" in r else "io_s", at_most=RATIO)
        elif row.kind == "generations":
            add(row, "streamed / resident step, k steps and one write", "ratio", at_most=WITH_GENERATIONS)
        elif row.kind == "accelerate":
            add(row, "the faster of theirs / ours", "times_faster", at_least=TIMES_FASTER)
            add(row, "our process / the smaller of theirs", "memory_share", at_most=1)
        else:
            add(row, "process, MiB", "process_mib", at_most=round(row.limit, 2))
    if any(r.kind == "growth" for r in rows):
        out.append(growth_target(found))
    return out


def growth_target(found: dict[str, dict]) -> dict:
    measured = [found.get(row.name, {"not_run": "not measured"}) for row in GROWTH_ROWS]
    peaks = [r.get("less_index_sets_mib") for r in measured]
    return common.target(
        f"growth, {', '.join(map(str, GROWTH_LAYERS))} layers: largest / smallest peak above open less index sets",
        max(peaks) / min(peaks) if all(peaks) else None,
        at_most=GROWTH,
        why=next((r["not_run"] for r in measured if "not_run" in r), ""),
    )


def measure(bench: Bench, rows: list[Row], done: dict[str, dict], isa: str, save: bool) -> dict[str, dict]:
    found = {row.name: done[row.name] for row in rows if row.name in done}
    left = [row for row in rows if row.name not in found]
    for i, row in enumerate(left):
        common.note(f"{i + 1} of {len(left)}: {row.name}")
        where = common.machine()
        try:
            found[row.name] = MEASURE[row.kind](bench, row) | {"weights": bench.models.weights(row.model)}
            if save:
                record = {"row": row.name, "machine": where, "isa": isa, "measured": found[row.name]}
                common.append(FILE, {"date": datetime.date.today().isoformat(), **record})
        except (NotRun, RuntimeError, OSError) as e:
            found[row.name] = {"not_run": str(e) or type(e).__name__}
        except AssertionError as e:  # what must hold on any machine does not
            found[row.name] = {"not_run": f"{FAILED}: {e}"}
        common.note(json.dumps(found[row.name]))
        bench.models.let_go({r.model for r in left[i + 1 :]})
    return {row.name: found[row.name] for row in rows}


def trial(row: Row, layers: int) -> Row:
    """The row with a model of so many layers; a growth row's grow from there."""
    times = 2 ** GROWTH_ROWS.index(row) if row in GROWTH_ROWS else 1
    return row._replace(model=row.model._replace(layers=layers * times))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--demo", type=Path, help="folder made by pysmezo demo --prepare")
    p.add_argument("--only", default="", metavar="TEXT", help="rows whose name holds this")
    p.add_argument("--list", action="store_true", help="print the names of the rows")
    p.add_argument("--again", action="store_true", help="measure rows that are in the file, too")
    p.add_argument("--models", type=Path, help="where the models are made (default: the benchmarks' cache)")
    p.add_argument("--keep-models", action="store_true", help="do not delete large models")
    p.add_argument("--pairs", type=int, default=9)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--layers", type=int, help="a trial: models cut to so many layers, nothing appended, no targets")
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    rows = [row for row in ROWS if a.only in row.name]
    if a.list:
        print("\n".join(row.name for row in rows))
        return
    if a.pairs < 1 or not rows:
        p.error(f"no row holds {a.only!r}" if not rows else "--pairs must be at least 1")
    if a.layers:
        rows = [trial(row, a.layers) for row in rows]
    folder = a.models or common.cache_dir("streaming")
    bench = Bench(streaming_models.Models(folder.resolve(), a.demo, a.keep_models), a.threads, a.pairs)
    where, isa = common.machine(), common.isa()
    done = {} if a.again or a.layers else common.earlier(FILE, where, isa)
    found = measure(bench, rows, done, isa, save=not a.layers)
    result = {"machine": where, "isa": isa, "threads": a.threads, "rows": found}
    result["targets"] = [] if a.layers else targets(rows, found)
    if a.only or a.layers:
        common.show(result, a.json)
    else:
        common.finish("streaming", result, a.json)
    if any(r.get("not_run", "").startswith(FAILED) for r in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
