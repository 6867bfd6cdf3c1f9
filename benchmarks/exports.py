"""`python -m benchmarks.exports --demo DIR --run-dir RUN [--sentences 500]`: what a fine-tune is for other programs.

Takes the delta of a finished `pysmezo demo` run, writes it as a merged model in fp32 and bf16 and as a SHiRA adapter,
opens each with stock transformers and PEFT, and compares the options' logits at the last token of test sentences with
ours. The yardstick is how far transformers' own bf16 is from its fp32 on the merged model: twice that is allowed, and a
prediction may differ where the options lie closer together than the logits differ. Sizes beside it: of the run's
journal and delta, and of a delta of an index set of 0.1 %.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from pathlib import Path

import numpy as np

from . import batches, common
from .streaming_child import one_label

BATCH = 50
FRACTION = 0.001
MB = 1_000_000


def sentences(demo: Path, n: int, folder: Path):
    """(batch of examples, prompts as lists of ids, the options' first ids)"""
    from pysmezo import data

    found = data.tokenize(demo / "model", demo / "test.jsonl", demo / "task.yaml", folder / "test.ids")
    batch = next(iter(found.in_order(n)))
    return batch, [list(map(int, p)) for p in batch.prompts], [int(o[0]) for o in batch.options]


def ours(run, batch) -> np.ndarray:
    """Scores of the options, [n_examples, n_options]."""
    parts = range(0, len(batch.prompts), BATCH)
    pieces = [type(batch)(batch.prompts[i : i + BATCH], batch.options, batch.labels[i : i + BATCH]) for i in parts]
    return np.concatenate([run.scores(p) for p in pieces])


def theirs(model, prompts: list[list[int]], options: list[int]) -> np.ndarray:
    """Logits of the options after each prompt, padded on the right, in batches: PEFT builds its weights anew for every
    forward."""
    import torch

    out = []
    with torch.inference_mode():
        for i in range(0, len(prompts), BATCH):
            some = prompts[i : i + BATCH]
            p = batches.padded(some)
            hidden = model.get_base_model().model if hasattr(model, "get_base_model") else model.model
            h = hidden(
                input_ids=torch.tensor(p["input_ids"]),
                attention_mask=torch.tensor(p["attention_mask"]),
                use_cache=False,
            ).last_hidden_state
            last = h[torch.arange(len(some)), torch.tensor([len(s) - 1 for s in some])]
            out.append(model.get_output_embeddings()(last)[:, options].float().numpy())
    return np.concatenate(out)


def compared(a: np.ndarray, b: np.ndarray, yardstick: float) -> dict:
    """Logits of the options, theirs and ours (b)."""
    error = float(np.abs(a - b).max())
    differs = a.argmax(axis=1) != b.argmax(axis=1)
    margin = np.abs(b[:, 0] - b[:, 1])
    return {
        "logit_error": error,
        "allowed": 2 * yardstick,
        "predictions_differ": int(differs.sum()),
        "widest_margin_of_those": float(margin[differs].max()) if differs.any() else 0.0,
    }


def exports(demo: Path, delta: Path, n: int, folder: Path) -> dict:
    import peft
    import torch
    import transformers

    from pysmezo import Runtime

    batch, prompts, options = sentences(demo, n, folder)
    scores = {}
    for dtype in ("bf16", "fp32"):
        with Runtime.from_pretrained(demo / "model", delta=delta, dtype=dtype) as run:
            scores[dtype] = ours(run, batch)
            if dtype == "bf16":
                sizes = {name: run.merge(folder / name, name) for name in ("bf16", "fp32")}
                adapter = run.export_peft(folder / "adapter")
        common.note(f"ours in {dtype}")

    def opened(name, dtype):
        return transformers.AutoModelForCausalLM.from_pretrained(folder / name, dtype=dtype).eval()

    found = {}
    for name, path, dtype in (
        ("merged fp32", "fp32", torch.float32),
        ("merged bf16", "bf16", torch.bfloat16),
        ("merged fp32 in bf16", "fp32", torch.bfloat16),
    ):
        found[name] = theirs(opened(path, dtype), prompts, options)
        gc.collect()
        common.note(name)
    base = transformers.AutoModelForCausalLM.from_pretrained(demo / "model", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()
    found["PEFT"] = theirs(model, prompts, options)
    common.note("PEFT")
    yardstick = float(np.abs(found["merged fp32 in bf16"] - found["merged fp32"]).max())
    rows = {"transformers' bf16 against its fp32": {"logit_error": yardstick, "sentences": len(prompts)}}
    for name, mine in (("merged fp32", "fp32"), ("merged bf16", "bf16"), ("PEFT", "fp32")):
        rows[name] = compared(found[name], scores[mine], yardstick)
    rows["merged fp32"]["bytes"], rows["merged bf16"]["bytes"] = sizes["fp32"], sizes["bf16"]
    rows["PEFT"] |= {"bytes": adapter["bytes_out"], "values": adapter["n_values"], "modules": len(adapter["modules"])}
    return rows


def sizes(demo: Path, run_dir: Path, delta: Path, folder: Path) -> dict:
    from pysmezo import Runtime, Sensitive, _core
    from pysmezo.session import read_run

    journal = _core.read_journal(str(run_dir / "journal.smz"))
    trained = read_run(str(run_dir))["diagnostics"]["n_trained"]
    tiny = one_label(batches.unpadded(49152, 1, 8)["input_ids"])
    method = Sensitive(fraction=FRACTION, source="random")
    with Runtime.from_pretrained(demo / "model", method=method, lr=1e-4, eps=1e-3) as run:
        run.train_step(tiny)
        small, n_small = run.save_delta(folder / "small.safetensors"), run._engine.n_trained
    bytes_a_value = 3  # bf16 and 8 bits more
    return {
        "journal": {
            "bytes": journal["n_bytes"],
            "steps": journal["n_records"],
            "bytes_a_step": journal["n_bytes"] / journal["n_records"],
        },
        "delta of SparseMeZO": {
            "bytes": delta.stat().st_size,
            "values": trained,
            "over_values": delta.stat().st_size / (trained * bytes_a_value),
        },
        "delta of 0.1 %": {"bytes": small, "values": n_small},
    }


def targets(rows: dict) -> list[dict]:
    out = []
    for name in ("merged fp32", "merged bf16", "PEFT"):
        r = rows[name]
        out += [
            common.target(f"{name}: logits differ from ours", r["logit_error"], at_most=r["allowed"]),
            common.target(
                f"{name}: widest margin of a prediction that differs",
                r["widest_margin_of_those"],
                at_most=r["logit_error"],
            ),
        ]
    return out + [
        common.target("journal: bytes a step", rows["journal"]["bytes_a_step"], at_most=64),
        common.target("delta of SparseMeZO / its values", rows["delta of SparseMeZO"]["over_values"], at_most=1.1),
        common.target("delta of 0.1 %, MB", rows["delta of 0.1 %"]["bytes"] / MB, at_most=1),
    ]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--demo", type=Path, required=True, help="folder made by pysmezo demo --prepare")
    p.add_argument("--run-dir", type=Path, required=True, help="of a finished demo")
    p.add_argument("--sentences", type=int, default=500)
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    where, isa, delta = common.machine(), common.isa(), a.run_dir / "trained.delta.safetensors"
    with tempfile.TemporaryDirectory(prefix="exports-", dir=common.cache_dir()) as folder:
        rows = exports(a.demo, delta, a.sentences, Path(folder)) | sizes(a.demo, a.run_dir, delta, Path(folder))
    common.finish("exports", {"machine": where, "isa": isa, "rows": rows, "targets": targets(rows)}, a.json)


if __name__ == "__main__":
    main()
