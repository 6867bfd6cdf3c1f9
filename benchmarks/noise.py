"""`python -m benchmarks.noise`: operands, updates and plain noise a second, beside torch.normal_ (in a child).

Rates are of weights: a weight counts once though mask, noise, both signs and rounding are made of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from . import common, native

AT_LEAST = {"gaussian": 1.0, "gaussian8": 4.0, "rademacher": 6.0}
RATE = "g_weights_per_s"


def measure(build: Path | None, seconds: float) -> dict:
    where = common.machine()
    executable = native.find("noise_bench", build)
    rows: dict = {}
    best: dict = {}  # (isa, kind) -> rate of operands of a bf16 weight on all threads, tensor in cache
    if executable is None:
        rows["noise_bench"] = {
            "not_run": "no executable noise_bench below the build folder; build it with `make bench`"
        }
    else:
        for r in native.lines(executable, str(seconds)):
            small = r["rows"] * r["cols"] < 2**22
            name = (
                native.label(r, "isa", "verb", "kind", "dtype")
                + f", {r['rows']} x {r['cols']}, {r['n_threads']} threads"
            )
            rows[name] = {k: v for k, v in r.items() if isinstance(v, float)}
            if r["verb"] == "produce" and r["dtype"].lower() == "bf16" and r["n_threads"] == 2 and small:
                best[r["isa"], r["kind"]] = r[RATE]
    try:
        with common.Child("benchmarks.torch_child") as child:
            for dtype, rate in child.ask("normal", n=1 << 24)["giga_per_s"].items():
                rows[f"torch.normal_ {dtype}"] = {"g_values_per_s": rate}
    except RuntimeError as e:
        rows["torch.normal_"] = {"not_run": str(e)}
    targets = []
    for noise, wanted in AT_LEAST.items():
        kind = f"{noise}/small/nearest"
        wide, narrow = (best.get((isa, kind)) for isa in ("avx512", "avx2"))
        why = "this machine has no AVX-512" if executable else rows["noise_bench"]["not_run"]
        targets.append(common.target(f"operands, {noise}, AVX-512, G weights/s", wide, at_least=wanted, why=why))
        half = narrow / wide if wide and narrow else None
        targets.append(
            common.target(f"operands, {noise}, AVX2 / AVX-512", half, at_least=0.5, why="one of them did not run")
        )
    return {"machine": where, "isa": common.isa(), "rows": rows, "targets": targets}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", type=Path, help="build folder; default: build/ of the checkout")
    p.add_argument("--seconds", type=float, default=0.2, help="a case")
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    common.finish("noise", measure(a.build, a.seconds), a.json)


if __name__ == "__main__":
    main()
