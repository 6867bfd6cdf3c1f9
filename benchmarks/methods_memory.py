"""The peak memory of a step of every method: a process of its own that opens the model, takes some steps and reports its
peak (VmHWM), as `benchmarks.memory` does. `python -m benchmarks.methods_memory ARGUMENTS` is that process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from . import common
from .methods_rows import Row, all_rows, row_of

MIB = 1 << 20
LR, STEPS = 1e-7, 3
OVER_NF4 = ({"kind": "sensitive"}, {"kind": "mazo"}, {"kind": "tezo"})
NF4 = " over NF4"
ALLOWANCE = "other"  # of the planner, not of what is held


class Case(NamedTuple):
    row: Row
    nf4: bool = False

    @property
    def label(self) -> str:
        return self.row.label + (NF4 if self.nf4 else "")


def all_cases() -> list[Case]:
    return [*(Case(row) for row in all_rows()), *(Case(row_of(**m), nf4=True) for m in OVER_NF4)]


def child(model: str, method: dict, eps: float, texts: int, tokens: int, threads: int) -> dict:
    from pysmezo import Runtime, memory, planning
    from pysmezo.methods import from_dict

    vocab = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
    batches = [planning.random_batch(texts, tokens, vocab, seed=seed) for seed in range(STEPS)]
    before = memory.peaks()[0]
    with (
        tempfile.TemporaryDirectory(prefix="pysmezo-methods-") as run_dir,
        Runtime.from_pretrained(
            model, method=from_dict(method), lr=LR, eps=eps, run_dir=run_dir, threads=threads
        ) as run,
    ):
        opened = memory.peaks()[0]
        for batch in batches:
            run.train_step(batch)
        peak = memory.peaks()[0]
        return {
            "process_mib": max(before, peak) / MIB,
            "above_open_mib": (peak - run.rss_at_open_bytes) / MIB,
            "opening_mib": (opened - run.rss_at_open_bytes) / MIB,
            "values": json.loads(run._engine.header_json)["values"],
            "held_mib": {
                name: round(n / MIB, 1) for name, n in run._engine.bytes_by_purpose.items() if n and name != ALLOWANCE
            },
        }


def nf4_of(model: Path, folder: Path) -> Path:
    """A copy of the model whose block weights are NF4."""
    out = folder / "nf4"
    command = [sys.executable, "-m", "pysmezo", "quantize", "--model", str(model), "--dtype", "nf4", "--out", str(out)]
    done = subprocess.run(command, cwd=common.ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.splitlines() or ["no reason given"])[-1])
    return out


def measure_case(case: Case, model: Path, texts: int, tokens: int, threads: int) -> dict:
    arguments = [str(model), case.row.method, case.row.eps, texts, tokens, threads]
    command = [sys.executable, "-m", "benchmarks.methods_memory", json.dumps(arguments)]
    done = subprocess.run(command, cwd=common.ROOT, capture_output=True, text=True)
    if done.returncode:
        return {"not_run": (done.stderr.splitlines() or ["no reason given"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(cases: list[Case], model: Path, texts: int, tokens: int, threads: int, save) -> dict[str, dict]:
    """Figures by label; save(label, figures) of each as soon as it is measured."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="pysmezo-methods-") as folder:
        quantized, why = None, "no case over NF4"
        if any(c.nf4 for c in cases):
            try:
                quantized = nf4_of(model, Path(folder))
            except RuntimeError as e:
                why = str(e)
        for case in cases:
            base = quantized if case.nf4 else model
            found[case.label] = measure_case(case, base, texts, tokens, threads) if base else {"not_run": why}
            common.note(f"memory: {case.label}: {json.dumps(found[case.label])}")
            save(case.label, found[case.label])
    return found


if __name__ == "__main__":
    sys.tracebacklimit = 0
    print(json.dumps(child(*json.loads(sys.argv[1]))))
