"""`python -m benchmarks.sensitivity [--demo DIR]`: SensZOQ's calibration against whole-model autograd, and its memory.

SmolLM2 on the demo's training sentences (as text; nothing is trained here): the index set of `pysmezo sensitivity` beside
that of transformers, which holds all weights, gradients and sums of squares in fp32. Sets may differ in elements whose F is
within 1e-5 of the threshold; the others are counted. What rounding alone does is seen beside it: both against transformers
in fp64. Then a 1B of random weights in bf16. Memory is VmHWM of a child
process less that of one that only imports torch. `--whole-1b` runs transformers on the 1B too (12 GiB).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from . import common

MIB = 1 << 20
FRACTION, CLOSE = 0.001, 1e-5
SMOLLM2, LLAMA = "SmolLM2-135M bf16", "llama-1b bf16"


# ------------------------------------------------------------------------------------------------------------- children


def bare(**_) -> dict:
    import torch  # noqa: F401

    return {}


def ours(model: str, ids: str, out: str, threads: int, budget: str | None) -> dict:
    import pysmezo._torch_calibration  # noqa: F401
    from pysmezo.progress import WorkProgress
    from pysmezo.sensitivity import sensitivity

    return sensitivity(
        model, np.load(ids), FRACTION, out, memory_budget=budget, threads=threads,
        progress=WorkProgress("ours", "GFLOP"), say=common.note,
    )  # fmt: skip


def whole(model: str, ids: str, out: str, threads: int, dtype: str = "float32") -> dict:
    """F of every linear weight of the blocks, one after the other in byte order of names, as the file `out`."""
    import time

    import torch
    import transformers

    torch.set_num_threads(threads)
    m = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    m.requires_grad_(False)
    chosen = {n: p.requires_grad_() for n, p in sorted(m.named_parameters()) if n.endswith("_proj.weight")}
    sums, losses, begin = {n: torch.zeros_like(p) for n, p in chosen.items()}, [], time.perf_counter()
    for i, row in enumerate(np.load(ids)):
        m.zero_grad()
        own = torch.tensor(row[None].astype(np.int64))
        logits = m(input_ids=own, use_cache=False).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits, own[0, 1:]
        )  # with labels= it would be in fp32 whatever the dtype
        loss.backward()
        losses.append(loss.item())
        for n, p in chosen.items():
            sums[n].addcmul_(p.grad, p.grad)
        common.note(f"transformers in {dtype}: sequence {i + 1}, {time.perf_counter() - begin:.0f} s")
    seconds = time.perf_counter() - begin
    with open(out, "wb") as f:
        for s in sums.values():
            s.div_(len(losses)).numpy().tofile(f)
    return {"seconds": seconds, "loss": float(np.mean(losses)), "sizes": {n: p.numel() for n, p in chosen.items()}}


def child(what: str, **arguments) -> dict:
    """Its result, and peak_bytes of its process."""
    command = [sys.executable, "-m", "benchmarks.sensitivity", "--child", what, json.dumps(arguments)]
    done = subprocess.run(command, cwd=common.ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"the child {what!r} ended with code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


# ----------------------------------------------------------------------------------------------------------------- rows


def of_index(index: Path, sizes: dict[str, int]) -> np.ndarray:
    """Its elements, numbered through all weights."""
    from safetensors.numpy import load_file

    first, lists = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False)), load_file(index)
    return np.sort(np.concatenate([own.astype(np.int64) + first[name] for name, own in lists.items()]))


def largest(f: np.ndarray) -> tuple[np.ndarray, float]:
    """(the fraction with the largest F, the least F among them)"""
    k = max(1, int(len(f) * FRACTION + 0.5))
    least = float(np.partition(f, len(f) - k)[len(f) - k])
    return np.flatnonzero(f >= least), least


def compared(got: np.ndarray, f: np.ndarray) -> dict:
    """A set against the largest of F."""
    want, least = largest(f)
    differ = np.setxor1d(got, want)
    distance = np.abs(f[differ] - least) / least
    return {
        "elements": len(got),
        "wanted": len(want),
        "differ": len(differ),
        "differ_beyond_1e-5": int((distance > CLOSE).sum()),
        "widest_distance": float(distance.max(initial=0.0)),
        "within_1e-5_of_threshold": int((np.abs(f - least) <= CLOSE * least).sum()),
    }


def row_of(found: dict, torch_bytes: int, shape) -> dict:
    out = {"sequences": shape[0], "length": shape[1], "seconds": found["seconds"], "loss": found["loss"]}
    out |= {"process_mib": found["vmhwm_bytes"] / MIB, "above_torch_mib": (found["vmhwm_bytes"] - torch_bytes) / MIB}
    if "predicted_peak_bytes" in found:
        out |= {
            "predicted_mib": found["predicted_peak_bytes"] / MIB,
            "activations_mib": found["activation_bytes"] / MIB,
            "activations_in_memory": found["activations_in_memory"],
        }
    return out


def block_bytes(model: Path) -> int:
    """Of a block's linear weights in fp32."""
    from pysmezo import MeZO, Runtime

    with Runtime.from_pretrained(model, method=MeZO(trains="model.norm.weight")) as run:
        return sum(4 * r * c for name, r, c, linear in run._engine.tensors if linear and ".layers.0." in name)


def measure(name: str, model: Path, ids: np.ndarray, a, folder: Path, torch_bytes: int, with_whole: bool) -> dict:
    np.save(folder / "ids.npy", ids)
    arguments = {"model": str(model), "ids": str(folder / "ids.npy"), "threads": a.threads}
    rows, index = {}, folder / "index.safetensors"
    for budget in (None, *a.budget):
        found = child("ours", out=str(index), budget=budget, **arguments)
        row = row_of(found, torch_bytes, ids.shape) | {"block_fp32_mib": block_bytes(model) / MIB}
        rows[f"{name}, ours" + (f", budget {budget}" if budget else "")] = row
    if with_whole:
        scores = folder / "f.bin"
        theirs = child("whole", out=str(scores), **arguments)
        rows[f"{name}, transformers"] = row_of(theirs, torch_bytes, ids.shape)
        got, f = of_index(index, theirs["sizes"]), np.fromfile(scores, np.float32)
        rows[f"{name}, index sets"] = compared(got, f)
        if name == SMOLLM2:
            child("whole", out=str(scores), dtype="float64", **arguments)
            exact = np.fromfile(scores, np.float64)
            rows[f"{name}, ours against fp64"] = compared(got, exact)
            rows[f"{name}, transformers against fp64"] = compared(largest(f)[0], exact)
        scores.unlink()
    return rows


def targets(rows: dict) -> list[dict]:
    out = []
    for name, row in rows.items():
        if name.endswith("index sets"):
            out.append(common.target(f"{name}: differ beyond 1e-5", float(row["differ_beyond_1e-5"]), at_most=0))
        elif "predicted_mib" in row:
            out.append(
                common.target(f"{name}: peak / predicted", row["above_torch_mib"] / row["predicted_mib"], at_most=1)
            )
            held = 2 * row["block_fp32_mib"] + row["activations_mib"] * row["activations_in_memory"]
            out.append(
                common.target(
                    f"{name}: peak less block, its F, activations (MiB)", row["above_torch_mib"] - held, at_most=128
                )
            )
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--demo", type=Path, help="folder made by pysmezo demo --prepare")
    p.add_argument("--sequences", type=int, default=32)
    p.add_argument("--length", type=int, default=256)
    p.add_argument("--sequences-1b", type=int, default=8, help="0: without the 1B")
    p.add_argument("--length-1b", type=int, default=128)
    p.add_argument("--budget", nargs="*", default=[], help="memory budgets to run beside none")
    p.add_argument("--whole-1b", action="store_true")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--json", action="store_true")
    p.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        from pysmezo import memory

        found = {"bare": bare, "ours": ours, "whole": whole}[a.child[0]](**json.loads(a.child[1]))
        print(json.dumps(found | {"vmhwm_bytes": memory.peaks()[0]}))
        return
    where, isa, rows = common.machine(), common.isa(), {}
    torch_bytes = child("bare")["vmhwm_bytes"]
    rows["a process with torch imported"] = {"process_mib": torch_bytes / MIB}
    with tempfile.TemporaryDirectory(prefix="sensitivity-") as folder:
        folder = Path(folder)
        if a.demo:
            from pysmezo.tokenizer_client import TokenizerClient

            client = TokenizerClient(a.demo / "model", max_length=a.length)
            ids = client.sequences(a.demo / "train.jsonl", a.sequences, a.length, 0)
            client.close()
            rows |= measure(SMOLLM2, a.demo / "model", ids, a, folder, torch_bytes, True)
        else:
            rows[SMOLLM2] = {"not_run": "no --demo"}
        if a.sequences_1b:
            make = ["bench", "make-model", "--shape", "llama-1b", "--dtype", "bf16", "--out", str(folder / "1b")]
            subprocess.run([sys.executable, "-m", "pysmezo", *make], cwd=common.ROOT, check=True, capture_output=True)
            ids = np.random.default_rng(0).integers(0, 32000, (a.sequences_1b, a.length_1b))
            rows |= measure(LLAMA, folder / "1b", ids, a, folder, torch_bytes, a.whole_1b)
    common.finish("sensitivity", {"machine": where, "isa": isa, "rows": rows, "targets": targets(rows)}, a.json)


if __name__ == "__main__":
    main()
