"""`python -m benchmarks.memory`: the peak that `plan` predicts beside the peak that a run has, over models, dtypes,
methods, budgets, batches and lengths.

Every case is a child process of its own that opens the model, takes some steps and reports its peak (VmHWM, reset when
the model is opened) less what it held when it was opened. The prediction is made in this process, from headers. A
case is met when measured <= predicted <= measured + max(5 %, 4 MiB). Models have random weights: this is about memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from . import common

MIB = 1 << 20
SLACK_BYTES, SLACK = 4 * MIB, 0.05
STEPS, GENERATION_EVERY = 5, 2
VOCABULARY = 1200  # of the tiny models; ids stay below it

# name -> (shape, layers, dtype) of `pysmezo bench make-model`, or None: tests/tiny_llama
MODELS = {
    "tiny bf16": None,
    "135m-3 bf16": ("smollm2-135m", 3, "bf16"),
    "135m-3 nf4-dq": ("smollm2-135m", 3, "nf4-dq"),
    "135m bf16": ("smollm2-135m", 30, "bf16"),
    "135m nf4": ("smollm2-135m", 30, "nf4"),
    "135m nf4-dq": ("smollm2-135m", 30, "nf4-dq"),
    "1b-4 nf4": ("llama-1b", 4, "nf4"),
    "1b-4 bf16": ("llama-1b", 4, "bf16"),
}
SENSITIVE, MEZO, SPARSE = {"kind": "sensitive", "fraction": 0.001}, {"kind": "mezo"}, {"kind": "sparse-mezo"}
MANY = {"kind": "sensitive", "fraction": 0.02, "queries": 2}
LOZO, TEZO = {"kind": "lozo", "rank": 16, "refresh": 2}, {"kind": "tezo", "rank": 16}
BESIDE = {"kind": "lozo", "rank": 2, "refresh": 2, "only_reads": True, "rank_cap": 8}
SUBZERO = {"kind": "subzero", "rank": 64, "refresh": 2}
TEZO_ADAM, MEZO_ADAM = {"kind": "tezo-adam", "rank": 16}, {"kind": "mezo-adam"}

# (model, method, budget in MiB or None or "least", texts, tokens each, threads, choice task)
CASES = (
    ("tiny bf16", SENSITIVE, "least", 4, 16, 2, False),
    ("tiny bf16", MEZO, 8, 4, 16, 2, False),
    ("tiny bf16", SPARSE, None, 4, 16, 1, False),
    ("tiny bf16", SENSITIVE, 64, 16, 64, 4, True),
    ("135m-3 bf16", SENSITIVE, "least", 1, 8, 1, True),
    ("135m-3 bf16", SENSITIVE, 32, 4, 32, 2, False),
    ("135m-3 bf16", MEZO, 64, 4, 32, 2, True),
    ("135m-3 bf16", MEZO, 200, 2, 8, 1, False),
    ("135m-3 bf16", SPARSE, "least", 8, 64, 2, False),
    ("135m-3 bf16", SPARSE, None, 8, 64, 2, True),
    ("135m-3 bf16", SENSITIVE, None, 16, 23, 2, False),
    ("135m-3 bf16", MANY, 48, 4, 64, 2, False),
    ("135m-3 nf4-dq", SENSITIVE, 20, 5, 23, 2, False),
    ("135m-3 nf4-dq", MEZO, 60, 4, 32, 2, True),
    ("135m-3 nf4-dq", SPARSE, 200, 4, 16, 8, False),
    ("135m-3 nf4-dq", SENSITIVE, None, 4, 32, 2, False),
    ("135m bf16", SENSITIVE, "least", 5, 23, 2, True),
    ("135m bf16", SENSITIVE, 40, 4, 32, 2, False),
    ("135m bf16", SENSITIVE, 64, 16, 32, 2, True),
    ("135m bf16", SENSITIVE, 128, 16, 64, 2, False),
    ("135m bf16", SENSITIVE, 400, 2, 128, 2, False),
    ("135m bf16", MANY, 100, 4, 32, 2, True),
    ("135m bf16", SENSITIVE, None, 4, 32, 2, True),
    ("135m bf16", SPARSE, 400, 4, 32, 2, True),
    ("135m nf4", SENSITIVE, "least", 4, 16, 2, False),
    ("135m nf4", SENSITIVE, 60, 16, 64, 2, False),
    ("135m nf4", SENSITIVE, 90, 1, 512, 2, True),
    ("135m nf4", SPARSE, 800, 4, 16, 2, True),
    ("135m nf4", SPARSE, 64, 4, 16, 2, True),
    ("135m nf4", SPARSE, "least", 16, 23, 2, True),
    ("135m nf4", SENSITIVE, None, 8, 64, 4, True),
    ("135m nf4-dq", SENSITIVE, 24, 4, 16, 1, True),
    ("135m nf4-dq", SENSITIVE, 60, 16, 64, 8, False),
    ("135m nf4-dq", MEZO, 800, 4, 32, 2, False),
    ("135m nf4-dq", MEZO, 120, 4, 32, 2, False),
    ("1b-4 nf4", SENSITIVE, "least", 2, 16, 2, True),
    ("1b-4 nf4", SENSITIVE, 64, 2, 16, 2, False),
    ("1b-4 nf4", SENSITIVE, 160, 8, 128, 2, False),
    ("1b-4 nf4", SENSITIVE, None, 2, 16, 2, False),
    ("1b-4 bf16", SENSITIVE, 120, 4, 64, 2, True),
    ("1b-4 bf16", MANY, 200, 4, 64, 2, False),
    ("135m-3 bf16", SUBZERO, None, 8, 64, 2, False),
    ("135m-3 bf16", MEZO_ADAM, None, 4, 32, 2, False),
    ("135m bf16", SUBZERO, "least", 4, 32, 2, False),
    ("135m bf16", SUBZERO, 900, 4, 32, 2, False),
    ("135m bf16", LOZO, 120, 4, 32, 2, True),
    ("135m bf16", TEZO, "least", 4, 32, 2, True),
    ("135m bf16", TEZO_ADAM, "least", 16, 64, 2, False),
    ("135m bf16", MEZO_ADAM, "least", 4, 32, 2, False),
    ("135m nf4", TEZO, 60, 16, 64, 2, False),
    ("1b-4 bf16", LOZO, 200, 4, 64, 2, False),
    ("1b-4 nf4", BESIDE, "least", 2, 16, 2, False),
)


def title(case) -> str:
    model, method, budget, texts, tokens, threads, choice = case
    fields = " ".join(str(v) for v in method.values())
    where = "no budget" if budget is None else "least budget" if budget == "least" else f"{budget} MiB"
    return f"{model}, {fields}, {where}, {texts} x {tokens}{' choice' if choice else ''}, {threads} threads"


def make_model(name: str, folder: Path) -> Path:
    out = folder / name.replace(" ", "-")
    if (out / "config.json").exists():
        return out
    if MODELS[name] is None:
        sys.path.insert(0, str(common.ROOT / "tests"))
        import tiny_llama

        config = tiny_llama.config(hidden=128, inner=384) | {"vocab_size": VOCABULARY, "max_position_embeddings": 4096}
        return tiny_llama.save(out, config, tiny_llama.to_bf16(tiny_llama.random_weights(config)), "BF16")
    shape, layers, dtype = MODELS[name]
    arguments = ["bench", "make-model", "--shape", shape, "--layers", str(layers), "--dtype", dtype, "--out", str(out)]
    subprocess.run([sys.executable, "-m", "pysmezo", *arguments], cwd=common.ROOT, check=True, capture_output=True)
    return out


def packed(texts: int, tokens: int, choice: bool, seed: int = 0):
    """Random ids; a choice between two tokens, or one label a text."""
    from pysmezo import planning

    return planning.random_batch(texts, tokens, VOCABULARY, [[1], [2]] if choice else None, seed)


def predict(model: Path, case, budget: int | None) -> dict:
    from pysmezo import planning
    from pysmezo.methods import from_dict

    _, method, _, texts, tokens, threads, choice = case
    method = from_dict(method)
    p = planning.planner(model, method, memory_budget=budget, threads=threads, generation_every=GENERATION_EVERY)
    return p.plan(planning.core_batch(packed(texts, tokens, choice)), 2 * method.queries)


def child(model: str, case, budget: int | None) -> dict:
    from pysmezo import Runtime, memory
    from pysmezo.methods import from_dict

    _, method, _, texts, tokens, threads, choice = case
    batches = [packed(texts, tokens, choice, seed) for seed in range(STEPS)]
    with (
        tempfile.TemporaryDirectory(prefix="pysmezo-memory-") as run_dir,
        Runtime.from_pretrained(
            model,
            method=from_dict(method),
            lr=1e-6,
            eps=1e-3,
            memory_budget=budget,
            threads=threads,
            run_dir=run_dir,
            generation_every=GENERATION_EVERY,
        ) as run,
    ):
        opened = memory.peaks()[0] - run.rss_at_open_bytes
        results = [run.train_step(b) for b in batches]
        return {
            "opened": opened,
            "peak": memory.peaks()[0] - run.rss_at_open_bytes,
            "read": results[-1].bytes_read,
            "held": run._engine.bytes_by_purpose,
        }


def measure(case, folder: Path) -> dict:
    model = make_model(case[0], folder)
    budget = case[2]
    if budget == "least":
        budget = predict(model, case, 1 << 40)["smallest_budget_bytes"]
    elif budget is not None:
        budget *= MIB
    found = predict(model, case, budget)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--child", json.dumps([str(model), case, budget])],
        cwd=common.ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return {"not_run": (done.stderr.splitlines() or ["no reason given"])[-1]}
    got = json.loads(done.stdout.splitlines()[-1])
    predicted, measured = found["predicted_peak_bytes"], got["peak"]
    return {
        "predicted_mib": predicted / MIB,
        "measured_mib": measured / MIB,
        "excess_mib": (predicted - measured) / MIB,
        "allowed_mib": max(SLACK * measured, SLACK_BYTES) / MIB,
        "budget_mib": None if budget is None else budget / MIB,
        "opened_mib": got["opened"] / MIB,
        "read_predicted": found["bytes_read_per_step"],
        "read_measured": got["read"],
        "met": bool(measured <= predicted <= measured + max(SLACK * measured, SLACK_BYTES)),
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", default="", help="cases whose title holds this")
    p.add_argument("--models", type=Path, help="where the models are made (default: the benchmarks' cache)")
    p.add_argument("--json", action="store_true")
    p.add_argument("--child", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        print(json.dumps(child(*json.loads(a.child))))
        return
    folder = a.models or common.cache_dir("memory")
    os.makedirs(folder, exist_ok=True)
    where, isa, rows = common.machine(), common.isa(), {}
    for case in CASES:
        if a.only in title(case):
            rows[title(case)] = measure(case, folder)
            common.note(f"{title(case)}: {json.dumps(rows[title(case)])}")
    ran = [r for r in rows.values() if "met" in r]
    met = sum(r["met"] for r in ran)
    targets = [
        common.target("cases run", len(ran), at_least=30),
        common.target("measured <= predicted <= measured + max(5 %, 4 MiB), cases missed", len(ran) - met, at_most=0),
        common.target(
            "measured above budget, cases",
            sum(r["budget_mib"] is not None and r["measured_mib"] > r["budget_mib"] for r in ran),
            at_most=0,
        ),
    ]
    result = {"machine": where, "isa": isa, "rows": rows, "targets": targets}
    if a.only:
        print(json.dumps(result if a.json else targets))
    else:
        common.finish("memory", result, a.json)


if __name__ == "__main__":
    main()
