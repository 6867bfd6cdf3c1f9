"""`python -m benchmarks.streaming [--demo DIR] [--only TEXT] [--json]`: what streaming costs, and what a process takes.

read-only    a streamed step against a resident one, in turns, at a budget of a quarter of the model; the page cache of
             the streamed files is dropped before each of its steps, and what the disk needs for the bytes is measured
             between them. Both runs see the same batch and seeds, and their losses must be the same bits.
generations  the same for SparseMeZO with its state streamed: the mean of k steps, one of which writes a generation; k
             is what `plan` chooses by the rates that `pysmezo doctor` kept (64 without them).
accelerate   our step against two forwards of a transformers model offloaded to disk by accelerate, in turns, at a
             budget that makes our process no larger than theirs.
growth       the peak at 8, 16 and 32 layers, with the smallest budget that `plan` accepts and a ring of one size.
memory       the peak (VmHWM) of a whole process that takes a few steps within a budget.

Rows are processes of their own. A finished row is appended to results/streaming.jsonl at once and not measured again on
such a machine, but with --again. Models have random weights, but SmolLM2 with --demo; large ones are deleted when no
later row needs them. Each command of a growth or memory row is printed, to be run under a hard limit by hand.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from . import batches, common, streaming_models
from .streaming_models import NotRun, Spec, copy, drop_cache, median_of_ratios

FILE = "streaming.jsonl"
MIB = 1 << 20
SENSITIVE = {"kind": "sensitive", "fraction": 0.001, "source": "random"}
SPARSE = {"kind": "sparse-mezo", "sparsity": 0.75}
BUDGET_SHARE = 0.25  # of the model's file, for ratios
RATIO, COMPUTE_BOUND, CEILING, WITH_GENERATIONS, TIMES_FASTER, GROWTH = 1.05, 2.0, 1.15, 1.25, 5.0, 1.02
PROCESS_BYTES = 48 * MIB  # of ours beside its budget, at most: interpreter, numpy, the extension
GROWTH_RING_BYTES = 16 * MIB
GROWTH_LAYERS = (8, 16, 32)
WARM_UP = 2


class Row(NamedTuple):
    kind: str  # of MEASURE
    model: Spec
    texts: int = 4
    tokens: int = 64
    method: dict = SENSITIVE
    limit: float = 0  # MiB of the process
    budget: int = 0  # MiB
    steps: int = 2
    generation_every: int = 0
    label: str = ""

    @property
    def name(self) -> str:
        what = self.label or f"{self.texts} x {self.tokens}"
        method = f", {self.method['kind']}" if self.kind == "memory" else ""
        return f"{self.kind}, {self.model.name}{method}, {what}"


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
    *GROWTH_ROWS,
    Row("memory", LLAMA_7B, limit=400, budget=360),
    Row("memory", LLAMA_7B, method=SPARSE, limit=600, budget=560, steps=3, generation_every=2),
    Row("memory", LLAMA_7B._replace(dtype="bf16"), limit=600, budget=560),
    Row("memory", LLAMA_30B, limit=800, budget=760),
)


class Bench(NamedTuple):
    models: streaming_models.Models
    threads: int
    pairs: int


def ids_of(row: Row, model: Path) -> list[list[int]]:
    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    return batches.unpadded(vocab, row.texts, row.tokens)["input_ids"]


def planner(model: Path, method: dict, **options):
    from pysmezo import planning
    from pysmezo.methods import from_dict

    return planning.planner(model, from_dict(method), **options)


def planned(model: Path, method: dict, ids: list, rates: dict | None = None, **options) -> dict:
    from pysmezo import planning

    from .streaming_child import one_label

    core = planning.core_batch(one_label(ids))
    return dict(planner(model, method, **options).plan(core, 2 * method.get("queries", 1), **(rates or {})))


def planned_interval(model: Path, method: dict, ids: list, rates: dict, **options) -> int:
    """Steps from one generation to the next that the planner reckons with, from the bytes it says are written."""

    from pysmezo import _core

    record = _core.RECORD_HEAD_BYTES + 4 * method.get("queries", 1)

    def of_generations(**more) -> int:
        return planned(model, method, ids, rates, **options, **more)["bytes_written_per_step"] - record

    return round(of_generations(generation_every=1) / of_generations())


class Side(common.Child):
    """A run of ours in a process of its own."""

    def __init__(self, bench: Bench, model: Path, row: Row, run_dir: Path, **options):
        super().__init__("benchmarks.streaming_child")
        self.n_steps = 0
        options |= {"model": str(model), "method": row.method, "run_dir": str(run_dir), "threads": bench.threads}
        try:
            self.ask("open", **options)
            self.ask("batch", input_ids=ids_of(row, model))
        except RuntimeError:
            self.close()
            raise

    def step(self) -> dict:
        self.n_steps += 1
        return self.ask("step")


def same_losses(resident: dict, streamed: dict, step: int) -> None:
    if resident["losses"] != streamed["losses"]:
        raise AssertionError(f"step {step}: losses {streamed['losses']} streamed, {resident['losses']} resident")


def quarter(model: Path) -> int:
    return int(streaming_models.stored_bytes(model) * BUDGET_SHARE)


# ----------------------------------------------------------------------------------------------------------------- rows


def read_only(bench: Bench, row: Row) -> dict:
    model = bench.models.path(row.model, row.model.n_bytes())
    budget, rounds = quarter(model), []
    with bench.models.temporary() as at:
        at = Path(at)
        own = copy(model, at)
        with (
            Side(bench, model, row, at / "resident") as resident,
            Side(bench, own, row, at / "streamed", budget=budget) as streamed,
        ):
            unit_bytes = max(1, streamed.ask("report")["held"]["ring"] // 8 // MIB) * MIB
            for r in range(-WARM_UP, bench.pairs):
                a = resident.step()
                drop_cache(own)
                b = streamed.step()
                same_losses(a, b, streamed.n_steps)
                if r >= 0:
                    rounds.append((a, b, streaming_models.disk_rate(own, unit_bytes)))
                    common.note(f"pair {r + 1} of {bench.pairs}")
            peak = streamed.ask("report")["process"]
    a_s, b_s = [a["seconds"] for a, _, _ in rounds], [b["seconds"] for _, b, _ in rounds]
    out = {
        "resident_s": statistics.median(a_s),
        "streamed_s": statistics.median(b_s),
        "ratio": median_of_ratios(b_s, a_s),
        "ratio_min": min(b / a for a, b in zip(a_s, b_s, strict=True)),
        "ratio_max": max(b / a for a, b in zip(a_s, b_s, strict=True)),
        "stall_s": statistics.median(b["stall_s"] for _, b, _ in rounds),
        "read_mib": statistics.median(b["read"] for _, b, _ in rounds) / MIB,
        "resident_major_faults": max(a["major_faults"] for a, _, _ in rounds),
        "budget_mib": budget / MIB,
        "process_mib": peak / MIB,
        "pairs": len(rounds),
    }
    if all(rate for _, _, rate in rounds):
        io_s = [b["read"] / rate for _, b, rate in rounds]
        out["io_s"] = statistics.median(io_s)
        out["disk_mb_s"] = statistics.median(rate for _, _, rate in rounds) / 1e6
        out["over_ceiling"] = median_of_ratios(b_s, [max(a, io) for a, io in zip(a_s, io_s, strict=True)])
    return out


def generations(bench: Bench, row: Row) -> dict:
    """After one step a generation is written, so that every step reads one; the step after it has no pending record.
    Then come k steps: the first replays one record, the last replays k and writes the next generation."""
    from pysmezo import planning

    state_bytes = row.model.state_bytes(1 - row.method["sparsity"])
    model = bench.models.path(row.model, row.model.n_bytes() + 2 * state_bytes)
    budget, rates = quarter(model), planning.kept_rates(model)
    options = {"memory_budget": budget, "threads": bench.threads, "stream_trained": True}
    k = planned_interval(model, row.method, ids_of(row, model), rates, **options)
    with bench.models.temporary() as at:
        at = Path(at)
        own = copy(model, at)
        streaming = {"budget": budget, "stream_trained": True, "generation_every": k}
        with (
            Side(bench, model, row, at / "resident") as resident,
            Side(bench, own, row, at / "streamed", **streaming) as streamed,
        ):

            def pair() -> tuple[dict, dict]:
                a = resident.step()
                drop_cache(own, at / "streamed")
                b = streamed.step()
                same_losses(a, b, streamed.n_steps)
                return a, b

            pair()
            generation_bytes = streamed.ask("generation")["written"]
            pair()
            rounds = []
            for i in range(k):
                rounds.append(pair())
                common.note(f"step {i + 1} of {k}")
            peak = streamed.ask("report")["process"]
    a_s, b_s = [a["seconds"] for a, _ in rounds], [b["seconds"] for _, b in rounds]
    writes = [i for i, (_, b) in enumerate(rounds) if b["written"] >= generation_bytes]
    if writes != [k - 1]:
        raise AssertionError(f"generations written in steps {writes} of {k}, expected one, in the last")
    mean = statistics.fmean(b_s)
    return {
        "k": k,
        "rates": "kept by doctor" if rates else "not known",
        "resident_s": statistics.median(a_s),
        "streamed_mean_s": mean,
        "ratio": mean / statistics.median(a_s),
        "write_step_s": b_s[-1],
        "other_steps_s": statistics.median(b_s[:-1] or b_s),
        "stall_s": statistics.median(b["stall_s"] for _, b in rounds),
        "read_mib": statistics.median(b["read"] for _, b in rounds) / MIB,
        "generation_mib": generation_bytes / MIB,
        "budget_mib": budget / MIB,
        "process_mib": peak / MIB,
    }


def against_accelerate(bench: Bench, row: Row) -> dict:
    if importlib.util.find_spec("accelerate") is None:
        raise NotRun("accelerate is not installed; it comes with pip install -e '.[dev]'")
    model = bench.models.path(row.model, row.model.n_bytes())  # disk_offload writes the weights again
    ids, ways = ids_of(row, model), ("device_map", "disk_offload")
    with bench.models.temporary() as at:
        at, theirs, loaded = Path(at), {}, {}
        try:
            for way in ways:
                (at / way).mkdir()
                theirs[way] = common.Child("benchmarks.accelerate_child")
                loaded[way] = theirs[way].ask(
                    "load", model=str(model), way=way, offload=str(at / way), threads=bench.threads
                )
            first = {way: theirs[way].ask("forwards", input_ids=ids) for way in ways}
            least = min(f["peak"] for f in first.values())
            budget = least - PROCESS_BYTES
            rounds = []
            with Side(bench, model, row, at / "ours", budget=budget) as ours:
                begin = ours.step()
                gap = max(abs(f["loss"] - begin["loss"]) for f in first.values())
                if not gap < 0.05:
                    raise AssertionError(f"losses differ by {gap:.3f}: not the same model and batch")
                for r in range(bench.pairs):
                    turn = {}
                    for way in ways:
                        drop_cache(model, at / way)
                        turn[way] = theirs[way].ask("forwards", input_ids=ids)
                    drop_cache(model)
                    turn["ours"] = ours.step()
                    rounds.append(turn)
                    common.note(f"round {r + 1} of {bench.pairs}")
                peak = ours.ask("report")["process"]
        finally:
            for child in theirs.values():
                child.close()
    out: dict = {"ours_s": statistics.median(t["ours"]["seconds"] for t in rounds)}
    for way in ways:
        out[f"{way}_s"] = statistics.median(t[way]["seconds"] for t in rounds)
        out[f"{way}_mib"] = rounds[-1][way]["peak"] / MIB
        out[f"{way}_loading_mib"] = loaded[way]["loading"] / MIB
    faster = [min(t[way]["seconds"] for way in ways) for t in rounds]
    versions = loaded[ways[0]]
    return out | {
        "times_faster": median_of_ratios(faster, [t["ours"]["seconds"] for t in rounds]),
        "process_mib": peak / MIB,
        "memory_share": peak / min(rounds[-1][way]["peak"] for way in ways),
        "budget_mib": budget / MIB,
        "stall_s": statistics.median(t["ours"]["stall_s"] for t in rounds),
        "rounds": len(rounds),
        "versions": {name: versions[name] for name in ("torch", "transformers", "accelerate")},
    }


def alone(bench: Bench, model: Path, row: Row, **options) -> dict:
    """What the child that takes row.steps steps says of its memory."""
    config = {
        "model": str(model),
        "method": row.method,
        "steps": row.steps,
        "threads": bench.threads,
        "folder": str(bench.models.folder),
        **options,
    }
    command = [sys.executable, "-m", "benchmarks.streaming_child", json.dumps(config)]
    common.note(shlex.join(command))
    drop_cache(model)
    done = subprocess.run(command, cwd=common.ROOT, capture_output=True, text=True)
    if done.returncode:
        raise NotRun((done.stderr.splitlines() or [f"the process ended with code {done.returncode}"])[-1])
    got = json.loads(done.stdout.splitlines()[-1])
    return {
        "process_mib": got["process"] / MIB,
        "above_open_mib": got["above_open"] / MIB,
        "index_sets_mib": got["held"]["index sets"] / MIB,
        "resident_units_mib": got["held"]["resident units"] / MIB,
        "ring_mib": got["held"]["ring"] / MIB,
        "forward_mib": got["held"]["forward"] / MIB,
        "step_s": statistics.median(got["seconds"]),
        "stall_s": statistics.median(got["stall_s"]),
        "read_mib": got["read"] / MIB,
        "written_mib": got["written"] / MIB,
        "steps": got["steps"],
    }


def growth(bench: Bench, row: Row) -> dict:
    model = bench.models.path(row.model)
    ids, ring = ids_of(row, model), {"ring_bytes": GROWTH_RING_BYTES}
    found = planned(model, row.method, ids, memory_budget=1 << 40, threads=bench.threads, **ring)
    budget = found["smallest_budget_bytes"]
    out = alone(bench, model, row, texts=row.texts, tokens=row.tokens, budget=budget, **ring)
    return out | {"budget_mib": budget / MIB, "less_index_sets_mib": out["above_open_mib"] - out["index_sets_mib"]}


def memory(bench: Bench, row: Row) -> dict:
    options: dict = {"budget": row.budget * MIB}
    if row.tokens:
        options |= {"texts": row.texts, "tokens": row.tokens}
    elif bench.models.demo is None:
        raise NotRun("needs --demo DIR, made by pysmezo demo --prepare DIR")
    else:
        options["demo"] = str(bench.models.demo.resolve())
    state_bytes = 0
    if "sparsity" in row.method:
        options["generation_every"] = row.generation_every
        state_bytes = row.model.state_bytes(1 - row.method["sparsity"])
    model = bench.models.path(row.model, 2 * state_bytes)
    return alone(bench, model, row, **options) | {"budget_mib": row.budget}


MEASURE = {
    "read-only": read_only,
    "generations": generations,
    "accelerate": against_accelerate,
    "growth": growth,
    "memory": memory,
}


# -------------------------------------------------------------------------------------------------------------- targets


def targets(found: dict[str, dict]) -> list[dict]:
    """The lines of the table of what must be shown, from rows by name."""
    out = []

    def add(row: Row, what: str, key: str, **limit) -> None:
        r = found.get(row.name, {"not_run": "not measured"})
        why = r.get("not_run", f"no {key}: this file system cannot be read past the page cache")
        out.append(common.target(f"{row.name}: {what}", r.get(key), why=why, **limit))

    for row in (r for r in ROWS if r.kind != "growth"):
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
    peaks = [found.get(r.name, {}).get("less_index_sets_mib") for r in GROWTH_ROWS]
    why = next((f"{r.name}: {found[r.name]['not_run']}" for r in GROWTH_ROWS if "not_run" in found.get(r.name, {})), "")
    layers = ", ".join(map(str, GROWTH_LAYERS))
    out.append(
        common.target(
            f"growth, {layers} layers: largest / smallest peak above open less index sets",
            max(peaks) / min(peaks) if all(peaks) else None,
            at_most=GROWTH,
            why=why or "not measured",
        )
    )
    return out


# ----------------------------------------------------------------------------------------------------------------- main


def earlier(where: dict, isa: str) -> dict[str, dict]:
    """Rows of the file that were measured on a machine like this one; of one name the newest."""
    same = ("cpu", "cores", "memory_gib")
    return {
        r["row"]: r["measured"]
        for r in common.rows(FILE)
        if "row" in r and r["isa"] == isa and all(r["machine"].get(k) == where.get(k) for k in same)
    }


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
    done = {} if a.again or a.layers else earlier(where, isa)
    found = measure(bench, rows, done, isa, save=not a.layers)
    result = {"machine": where, "isa": isa, "threads": a.threads, "rows": found}
    result["targets"] = [] if a.layers else targets(found)
    if a.only or a.layers:
        common.show(result, a.json)
    else:
        common.finish("streaming", result, a.json)


if __name__ == "__main__":
    main()
