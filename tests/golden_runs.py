"""Journals of every kind of method with the hash of the weights that they rebuild: they hold for ever.

`python tests/golden_runs.py` writes those of METHODS that are not there yet; it replaces none. A change that makes one of
them rebuild other weights needs a new numerics version (csrc/engine/run_header.h), not a new file here.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import tiny_llama
from safetensors.numpy import save_file

from pysmezo import LargestMask, MeZO, RandomMask, Runtime, Sensitive, SparseMeZO, _core, methods

FOLDER = Path(__file__).parent / "golden" / "runs"
CONFIG = tiny_llama.config(hidden=32, layers=1, heads=4, kv_heads=2, inner=48, vocab=40, tied=True)
DEEP = tiny_llama.config(hidden=32, layers=4, heads=4, kv_heads=2, inner=48, vocab=40, tied=True)
INDEX_OF = "model.layers.0.mlp.down_proj.weight"
STEPS = 4
# name -> (base, method, options); "index" stands for the index file.
METHODS = {
    "mezo": ("bf16", MeZO(), {}),
    "mezo-all": ("fp32", MeZO(trains="all", noise="gaussian", weight_decay=0.25), {"values": "fp32"}),
    "mezo-rademacher": ("bf16", MeZO(noise="rademacher", queries=3), {"values": "bf16"}),
    "random-mask": ("bf16", RandomMask(sparsity=0.7, noise="rademacher"), {}),
    "largest-mask": ("fp32", LargestMask(sparsity=0.6), {"dtype": "bf16"}),
    "sparse-mezo": ("bf16", SparseMeZO(sparsity=0.5, queries=2, noise="gaussian"), {}),
    "sparse-mezo-nf4": ("nf4", SparseMeZO(sparsity=0.75, weight_decay=0.5), {}),
    "sensitive": ("nf4", Sensitive(fraction=0.05), {}),
    "sensitive-index": ("int8", "index", {"operand": "split"}),
    "mazo": ("nf4", methods.MaZO(fraction=0.1), {}),
    "random-rows": ("int8", methods.RandomRows(fraction=0.2), {}),
    "lezo": ("deep", methods.LeZO(drop=0.5, trains="all"), {}),
    "one-sided": ("bf16", methods.OneSided(queries=3), {}),
    "fzoo": ("bf16", methods.FZOO(queries=3), {}),
    "zo-sign": ("bf16", methods.ZOSign(queries=2), {"values": "fp32"}),
    "hizoo": ("fp32", methods.HiZOO(smoothing=2.0**-10), {}),
    "momentum": ("bf16", methods.SparseMeZO(sparsity=0.5, rule="momentum", queries=2), {}),
    "adam": ("bf16", methods.MeZOAdam(trains="all", weight_decay=0.5), {}),
    "adam-window": ("bf16", methods.MeZOAdam(window=2, noise="gaussian"), {}),
    "adam-index-set": ("int8", methods.Sensitive(fraction=0.05, rule="adam"), {}),
    "lozo": ("bf16", methods.LOZO(rank=2, refresh=2, queries=2, weight_decay=0.25), {}),
    "lozo-beside": ("nf4", methods.LOZO(rank=2, refresh=2, only_reads=True, rank_cap=4), {}),
    "lozo-m": ("bf16", methods.LOZOMomentum(rank=3, refresh=2, noise="rademacher"), {"values": "fp32"}),
    "subzero": ("bf16", methods.SubZero(rank=3, refresh=2, queries=2), {}),
    "subzero-beside": ("int8", methods.SubZero(rank=3, refresh=2, only_reads=True, rank_cap=6), {}),
    "tezo": ("nf4", methods.TeZO(rank=4, queries=2), {}),
    "tezo-m": ("bf16", methods.TeZOMomentum(rank=4, noise="gaussian"), {}),
    "tezo-adam": ("bf16", methods.TeZOAdam(rank=4), {}),
    "tezo-adam-c": ("nf4", methods.TeZOAdamC(rank=4), {}),
}


def made(config: dict) -> dict[str, np.ndarray]:
    weights, state = {}, 12345
    for name, w in tiny_llama.random_weights(config).items():
        values = []
        for _ in range(w.size):
            state = (1103515245 * state + 12345) % 2**31
            values.append((state >> 8) % 2001 - 1000)
        weights[name] = (np.array(values, np.float32) / 4096 + (w.ndim == 1)).reshape(w.shape).astype(np.float32)
    return weights


def bases(folder: Path) -> dict[str, Path]:
    """{format: folder}, of weights that integers make, so that they are the same with every library and machine."""
    weights = made(CONFIG)
    out = {"fp32": tiny_llama.save(folder / "fp32", CONFIG, weights)}
    out["bf16"] = tiny_llama.save(folder / "bf16", CONFIG, tiny_llama.to_bf16(weights), "BF16")
    for dtype in ("nf4", "int8"):
        out[dtype] = folder / dtype
        _core.quantize_folder(str(out["bf16"]), str(out[dtype]), dtype=dtype)
    out["deep"] = tiny_llama.save(folder / "deep", DEEP, tiny_llama.to_bf16(made(DEEP)), "BF16")
    return out


def index_file(folder: Path) -> Path:
    path = folder / "index.safetensors"
    save_file({INDEX_OF: np.arange(0, 32 * 48, 37, dtype=np.int32)}, path)
    return path


def digest(run) -> str:
    h = hashlib.sha256()
    for name in run.tensor_ids():
        h.update(run.weights(name).tobytes())
    return h.hexdigest()


def make(name: str, at: dict[str, Path], index: Path) -> dict:
    base, method, options = METHODS[name]
    method = Sensitive(index=str(index)) if method == "index" else method
    with tempfile.TemporaryDirectory() as folder:
        opened = {"lr": 2.0**-7, "eps": 2.0**-6, "seed": 11, "threads": 1, "run_dir": folder} | options
        with Runtime.from_pretrained(at[base], method=method, **opened) as run:
            for s in range(STEPS):
                ids = np.random.default_rng(s).integers(3, 40, (2, 7))
                objective = (lambda *_: float("nan")) if s == 1 else None
                run.train_step({"input_ids": ids, "labels": ids}, objective=objective)
            found = {"base": base, "steps": run.step, "weights": digest(run)}
        (FOLDER / f"{name}.smz").write_bytes((Path(folder) / "journal.smz").read_bytes())
    return found


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    table = FOLDER / "weights.json"
    found = json.loads(table.read_text()) if table.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        at, index = bases(Path(folder)), index_file(Path(folder))
        for name in METHODS:
            if name not in found:
                found[name] = make(name, at, index)
    table.write_text(json.dumps(found, indent=1) + "\n")
