"""`python -m benchmarks.quantized`: a linear layer of 4096 x 4096 with an NF4 base, 16 to 1024 tokens, two threads.

Ours (operands of a strip made of the codes, multiplied at once) beside bitsandbytes' Linear4bit on the CPU, torch's
int4 pack, and our own layer with a bf16 base. The programs take turns, a few rounds; a row holds medians over rounds,
ratios are medians of ratios within a round. Then how many weights a second become operands, or fp32, alone.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from . import common, native

SIZE = 4096
TOKENS = (16, 64, 256, 1024)
THEIRS = ("bitsandbytes", "int4pack")
DECODE_AT_LEAST = 5.0  # G weights a second


def measure_round(executable: Path, child: common.Child, m: int, threads: int, seconds: float) -> dict:
    """Seconds of each program, one after the other."""
    ours = native.lines(executable, f"m={m}", f"threads={threads}", f"seconds={seconds}")[0]
    theirs = {w: child.ask("quantized", which=w, k=SIZE, m=m, at_least_s=seconds)["seconds"] for w in THEIRS}
    return {"nf4": ours["nf4_s"], "our bf16": ours["bf16_s"], **theirs}


def row_of(rounds: list[dict]) -> dict:
    row = {f"{name}_ms": 1e3 * statistics.median(r[name] for r in rounds) for name in rounds[0]}
    row["best of theirs / ours"] = statistics.median(min(r[w] for w in THEIRS) / r["nf4"] for r in rounds)
    row["ours / our bf16"] = statistics.median(r["nf4"] / r["our bf16"] for r in rounds)
    return row


def measure(build: Path | None, threads: int, rounds: int, seconds: float) -> dict:
    where, isa = common.machine(), common.isa()
    executable = native.find("quantized_bench", build)
    title = {m: f"NF4 linear {SIZE} x {SIZE}, M = {m}, {threads} threads" for m in TOKENS}
    measured: dict[int, list[dict]] = {m: [] for m in TOKENS}
    rows: dict = {}
    why = "no executable quantized_bench below the build folder; build it with `make bench`"
    if executable is not None:
        try:
            with common.Child("benchmarks.torch_child") as child:
                rows["versions"] = child.ask("quantized_load", n=SIZE, k=SIZE, threads=threads)
                for r in range(rounds):
                    for m in TOKENS:
                        measured[m].append(measure_round(executable, child, m, threads, seconds))
                    common.note(f"round {r + 1} of {rounds}")
        except RuntimeError as e:
            why = str(e)
            measured = {m: [] for m in TOKENS}
        for alone in native.lines(executable, "m=0", f"threads={threads}", f"seconds={seconds}"):
            rows[f"{alone['weights']} weights alone, {threads} threads"] = {
                f"{verb} to {to}, G weights/s": alone[f"{verb}_g_per_s"]
                for verb, to in (("produce", "operands"), ("decode", "fp32"))
            }
    targets = []
    for m in TOKENS:
        rows[title[m]] = row_of(measured[m]) if measured[m] else {"not_run": why}
        ratio = rows[title[m]].get("best of theirs / ours")
        name = f"M = {m}: the better of bitsandbytes and int4 pack / ours"
        targets.append(common.target(name, ratio, at_least=1, why=why))
    ratio = rows[title[TOKENS[-1]]].get("ours / our bf16")
    targets.append(common.target(f"M = {TOKENS[-1]}: ours / our bf16 layer", ratio, at_most=1.3, why=why))
    alone = rows.get(f"nf4 weights alone, {threads} threads", {}).get("produce to operands, G weights/s")
    targets.append(common.target("NF4 to operands, G weights/s", alone, at_least=DECODE_AT_LEAST, why=why))
    return {"machine": where, "isa": isa, "rows": rows, "targets": targets}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", type=Path, help="build folder; default: build/ of the checkout")
    p.add_argument("--threads", type=int, default=2, choices=(1, 2))
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--seconds", type=float, default=0.2, help="a program, case and round")
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    common.finish("quantized", measure(a.build, a.threads, a.rounds, a.seconds), a.json)


if __name__ == "__main__":
    main()
