"""How each kind of row of `benchmarks.streaming` is measured: a function of the row that returns its figures, or raises
NotRun.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from . import batches, common, streaming_models
from .streaming_models import NotRun, Spec, copy, drop_cache

MIB = 1 << 20
SENSITIVE = {"kind": "sensitive", "fraction": 0.001, "source": "random"}
BUDGET_SHARE = 0.25  # of the model's file, for ratios
PROCESS_BYTES = 48 * MIB  # of ours beside its budget, at most: interpreter, numpy, the extension
GROWTH_RING_BYTES = 16 * MIB
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


class Bench(NamedTuple):
    models: streaming_models.Models
    threads: int
    pairs: int


def ids_of(row: Row, model: Path) -> list[list[int]]:
    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    return batches.unpadded(vocab, row.texts, row.tokens)["input_ids"]


def planned(model: Path, method: dict, ids: list, rates: dict | None = None, **options) -> dict:
    from pysmezo import planning
    from pysmezo.methods import from_dict

    from .streaming_child import one_label

    p = planning.planner(model, from_dict(method), **options)
    return dict(p.plan(planning.core_batch(one_label(ids)), 2, **(rates or {})))


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


def median_of_ratios(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def quarter(model: Path) -> int:
    return int(streaming_models.stored_bytes(model) * BUDGET_SHARE)


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
            # The disk is asked in blocks of the size of units: an eighth of the ring (store/plan.h).
            unit_bytes = max(1, streamed.ask("report")["held"]["ring"] // 8 // MIB) * MIB
            for r in range(-WARM_UP, bench.pairs):
                a = resident.step()
                drop_cache(own)
                # Before and after the step, and the better of the two: a disk gives twice as much at one time as at another.
                before = streaming_models.disk_rate(own, unit_bytes)
                b = streamed.step()
                same_losses(a, b, streamed.n_steps)
                if r >= 0:
                    after = streaming_models.disk_rate(own, unit_bytes)
                    rounds.append((a, b, max(before, after) if before and after else None))
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
    Then come k steps, a few times over: the first replays one record, the last replays k and writes the next generation.
    """
    from pysmezo import _core, planning

    state_bytes = row.model.state_bytes(1 - row.method["sparsity"])
    model = bench.models.path(row.model, row.model.n_bytes() + 2 * state_bytes)
    budget, kept = quarter(model), planning.kept_rates(model)
    rates = kept or dict(_core.doctor_rates(threads=bench.threads))
    options = {"memory_budget": budget, "threads": bench.threads, "stream_trained": True}
    k = planned(model, row.method, ids_of(row, model), rates, **options)["generation_every"]
    n = k * max(1, round(bench.pairs / k))
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
            for i in range(n):
                rounds.append(pair())
                common.note(f"step {i + 1} of {n}")
            peak = streamed.ask("report")["process"]
    a_s, b_s = [a["seconds"] for a, _ in rounds], [b["seconds"] for _, b in rounds]
    writes = [i for i, (_, b) in enumerate(rounds) if b["written"] >= generation_bytes]
    if writes != list(range(k - 1, n, k)):
        raise AssertionError(f"generations written in steps {writes} of {n}, expected each {k}th")
    mean = statistics.fmean(b_s)
    return {
        "k": k,
        "rates": "kept by doctor" if kept else "measured for this row",
        "resident_s": statistics.fmean(a_s),
        "streamed_mean_s": mean,
        "ratio": mean / statistics.fmean(a_s),
        "pairs": n,
        "write_step_s": statistics.median(b_s[i] for i in writes),
        "other_steps_s": statistics.median(b_s[i] for i in range(n) if k == 1 or i not in writes),
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
            first = {way: theirs[way].ask("forward", input_ids=ids) for way in ways}
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
                        # Before each: a page cache that keeps a model is memory.
                        two = []
                        for _ in range(2):
                            drop_cache(model, at / way)
                            two.append(theirs[way].ask("forward", input_ids=ids))
                        both = {key: two[0][key] + two[1][key] for key in ("seconds", "read")}
                        turn[way] = both | {"peak": two[1]["peak"]}
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
        out[f"{way}_read_mib"] = statistics.median(t[way]["read"] for t in rounds) / MIB
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
        "loss_gap": gap,
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
    # The batch at once, and nothing that stays: not the smallest budget, in which it goes in micro-batches.
    found = planned(model, row.method, ids, memory_budget=1 << 40, threads=bench.threads, **ring)
    held = found["bytes_by_purpose"]
    budget = found["predicted_peak_bytes"] - held["resident units"] - held["ring"] + GROWTH_RING_BYTES
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
