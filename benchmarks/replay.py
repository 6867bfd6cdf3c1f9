"""`python -m benchmarks.replay [--demo DIR] [--steps 1000]`: the model of a step rebuilt from base and journal.

Trains SmolLM2 (random weights without --demo) with dense MeZO and 24-bit values on tiny batches, then replays its
journal: all in memory, and streamed within a budget. What opening takes without any record is taken off. Beside it: a
training step of 16 x 64 tokens, and applying one record to values that lie in cache (`pysmezo doctor`), which is the
limit that noise sets.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from . import batches, common
from .streaming_child import one_label
from .streaming_models import Models, NotRun, Spec

MIB = 1 << 20
LR, EPS = 1e-6, 1e-3
BUDGET = 96 * MIB
UPDATES_AT_LEAST, FASTER_AT_LEAST = 2.5, 4.0
TIMED_STEPS = 5


def opened(model: Path, journal: Path, to: int, threads: int, out: Path | None, budget: int | None) -> float:
    """Seconds of opening a journal's model, and of saving its delta where that is asked for."""
    from pysmezo import Runtime

    begin = time.perf_counter()
    with Runtime.from_journal(model, journal, to, threads=threads, memory_budget=budget) as run:
        if out is not None:
            run.save_delta(out)
        return time.perf_counter() - begin


def measure(model: Path, steps: int, threads: int, rounds: int, folder: Path) -> dict:
    from pysmezo import MeZO, Runtime, _core

    vocab = 49152
    with Runtime.from_pretrained(model, method=MeZO(), lr=LR, eps=EPS, threads=threads, run_dir=folder / "run") as run:
        tiny = one_label(batches.unpadded(vocab, 1, 8)["input_ids"])
        begin = time.perf_counter()
        for step in range(steps):
            run.train_step(tiny)
            if (step + 1) % 250 == 0:
                common.note(f"{step + 1} of {steps} steps in {time.perf_counter() - begin:.0f} s")
        run.save_delta(folder / "trained")
        n = run._engine.n_trained
        run_bytes = (folder / "run" / "journal.smz").stat().st_size
    journal = folder / "run" / "journal.smz"
    wide = one_label(batches.unpadded(vocab, 16, 64)["input_ids"])
    with Runtime.from_pretrained(model, method=MeZO(), lr=LR, eps=EPS, threads=threads) as run:
        step_s = statistics.median(run.train_step(wide).seconds for _ in range(TIMED_STEPS))
    rows = {
        "journal": {"records": steps, "bytes": run_bytes, "trained": n},
        "a training step of 16 x 64": {"median_s": step_s},
    }
    for name, budget in (("in memory", None), (f"within {BUDGET // MIB} MiB", BUDGET)):
        seconds, same = [], True
        for _ in range(rounds):
            # Streamed values are caught up when they are looked at: both save the delta.
            none = opened(model, journal, 0, threads, folder / "none", budget)
            all_of_it = opened(model, journal, steps, threads, folder / "replayed", budget)
            same &= (folder / "replayed").read_bytes() == (folder / "trained").read_bytes()
            seconds.append(all_of_it - none)
            common.note(f"{name}: {all_of_it:.1f} s, {none:.1f} s without records")
        s = statistics.median(seconds)
        rows[f"replay {name}"] = {
            "median_s": s,
            "updates_g_per_s": n * steps / s / 1e9,
            "times_training": step_s * steps / s,
            "bit_identical": same,
        }
    limit = dict(_core.doctor_rates(threads=threads))
    rows["limit: a record applied in cache"] = {"updates_g_per_s": limit["updates_per_s"] / 1e9}
    return rows


def targets(rows: dict) -> list[dict]:
    out = []
    for name, row in rows.items():
        if name.startswith("replay"):
            out += [
                common.target(f"{name}: the trained weights, bit for bit", float(row["bit_identical"]), at_least=1),
                common.target(f"{name}: G updates/s", row["updates_g_per_s"], at_least=UPDATES_AT_LEAST),
                common.target(f"{name}: training at 16 x 64 / replay", row["times_training"], at_least=FASTER_AT_LEAST),
            ]
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--demo", type=Path, help="folder made by pysmezo demo --prepare")
    p.add_argument("--steps", type=int, default=1000)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rounds", type=int, default=1)
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    models = Models(common.cache_dir("streaming").resolve(), a.demo, True)
    where, isa = common.machine(), common.isa()
    try:
        model = models.path(Spec("smollm2-135m", "bf16"))
    except NotRun as e:
        p.error(str(e))
    with tempfile.TemporaryDirectory(prefix="replay-", dir=models.folder) as folder:
        rows = measure(model, a.steps, a.threads, a.rounds, Path(folder))
    result = {"machine": where, "isa": isa, "rows": rows, "targets": targets(rows)}
    common.finish("replay", result, a.json)


if __name__ == "__main__":
    main()
