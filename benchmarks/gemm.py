"""`python -m benchmarks.gemm`: our matrix product beside torch's linear at the same shapes, and beside the machine's
peak.

bf16 is compared on AMX. fp32 is compared on AVX2: the torch child that it is held against is capped to AVX2 by the
variables that ATen and oneDNN read when they start. What torch reaches uncapped in bf16 on this machine is a row
without a target.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from . import common, native

CAP = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
SHARE = 0.8


def torch_rates(wanted: list[dict], dtype: str, environment: dict, threads: int, seconds: float) -> dict:
    """(k, n, t) -> Gflop/s of torch's linear in a child started with that environment."""
    with common.Child("benchmarks.torch_child", environment=environment) as child:
        capability = child.ask("capabilities")["cpu_capability"]
        rates = {}
        for r in wanted:
            shape = (r["k"], r["n"], r["t"])
            rates[shape] = child.ask(
                "linear", n=r["n"], k=r["k"], t=r["t"], dtype=dtype, threads=threads, at_least_s=seconds
            )["giga_flops"]
        return {"capability": capability, "rates": rates}


def compared(ours: list[dict], theirs: dict, title: str) -> dict:
    """Rows of both rates and their ratio."""
    rows = {}
    for r in ours:
        other = theirs["rates"][r["k"], r["n"], r["t"]]
        rows[f"{title}, K {r['k']} N {r['n']} T {r['t']}"] = {
            "gflops": float(r["gflops"]),
            "of_peak": float(r["fraction"]),
            "torch_gflops": other,
            "ratio": r["gflops"] / other,
        }
    return rows


def measure(build: Path | None, threads: int, seconds: float, only_t: int | None) -> dict:
    where = common.machine()
    executable = native.find("gemm_bench", build)
    rows: dict = {}
    targets = []
    every = f"median over shapes, {threads} threads"
    plans = (
        # title, arguments of ours, the numerics wanted, torch's dtype and environment, the target
        ("bf16", ["compute=bf16"], None, "bfloat16", {}, "bf16 on AMX / torch bf16 linear"),
        ("fp32 on AVX2", ["compute=f32", "isa=avx2"], "avx2", "float32", CAP, "fp32 on AVX2 / torch fp32 held to AVX2"),
    )
    for title, arguments, isa, dtype, environment, name in plans:
        why = "no executable gemm_bench below the build folder; build it with `make bench`"
        found: list[dict] = []
        if executable is not None:
            extra = [f"t={only_t}"] if only_t else []
            found = native.lines(executable, *arguments, f"threads={threads}", *extra, isa=isa)
            why = "this machine lacks the instruction set"
        try:
            theirs = torch_rates(found, dtype, environment, threads, seconds) if found else {}
        except RuntimeError as e:
            found, why = [], str(e)
        if not found:
            rows[title] = {"not_run": why}
            targets.append(common.target(f"{name}, {every}", None, at_least=SHARE, why=why))
            continue
        numerics = found[0]["isa"]
        made = compared(found, theirs, f"{title} ({numerics}, torch {theirs['capability']})")
        rows |= made
        ratio = statistics.median(r["ratio"] for r in made.values())
        if title == "bf16" and numerics != "amx":
            rows[f"bf16 on {numerics} / torch bf16 linear, {every}"] = {"ratio": ratio}
            ratio, why = None, f"no AMX here; kernels: {numerics}"
        targets.append(common.target(f"{name}, {every}", ratio, at_least=SHARE, why=why))
    return {"machine": where, "isa": common.isa(), "rows": rows, "targets": targets}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", type=Path, help="build folder; default: build/ of the checkout")
    p.add_argument("--threads", type=int, default=2, choices=(1, 2))
    p.add_argument("--seconds", type=float, default=0.3, help="a shape, on torch's side")
    p.add_argument("--t", type=int, help="only this many tokens; default: 32 to 2048")
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    common.finish("gemm", measure(a.build, a.threads, a.seconds, a.t), a.json)


if __name__ == "__main__":
    main()
