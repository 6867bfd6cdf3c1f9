"""Our side of `benchmarks.streaming`, in a process of its own: commanded over pipes (`common.Child`), or, with one JSON
object as its argument, a run of some steps whose memory is reported as one JSON line.

`python -m benchmarks.streaming_child '{"model": DIR, "method": {"kind": "sensitive"}, "budget": BYTES, "steps": 2}'`
can so be run under a hard limit by hand.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path

from . import batches, common

LR, EPS = 1e-6, 1e-3
DEMO_BATCH = 16
STATE: dict = {}


def one_label(input_ids: list):
    """Packed once, so that no step pays for it; the last token of a text is its label."""
    from pysmezo import packing

    return packing.pack_sequences({"input_ids": input_ids, "labels": batches.last_label_only(input_ids)})


def demo_batches(model: str, demo: str, folder: str):
    """The demo's training batches, after the one that holds the most tokens."""
    from pysmezo import data

    found = data.tokenize(model, f"{demo}/train.jsonl", f"{demo}/task.yaml", f"{folder}/tokens.ids")
    yield found.longest(DEMO_BATCH)
    yield from found.batches(0, DEMO_BATCH)


def open_run(model: str, method: dict, run_dir: str, threads: int = 2, budget: int | None = None, **options) -> dict:
    """Opens the run that `step` steps. options: more of Runtime.from_pretrained's."""
    from pysmezo import Runtime, memory
    from pysmezo.methods import from_dict

    STATE["before"] = memory.peaks()[0]
    STATE["run"] = Runtime.from_pretrained(
        model,
        method=from_dict(method),
        lr=LR,
        eps=EPS,
        run_dir=run_dir,
        threads=threads,
        memory_budget=budget,
        **options,
    )
    return {"rss_at_open": STATE["run"].rss_at_open_bytes}


def batch(input_ids: list) -> dict:
    STATE["batch"] = one_label(input_ids)
    return {"tokens": sum(map(len, input_ids))}


def step() -> dict:
    """One step on the batch; losses as hex, so that bits can be compared. major_faults: pages this process had to read
    from disk."""
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    r = STATE["run"].train_step(STATE["batch"])
    return {
        "seconds": r.seconds,
        "loss": r.loss,
        "losses": [r.loss_plus.hex(), r.loss_minus.hex()],
        "read": r.bytes_read,
        "written": r.bytes_written,
        "stall_s": r.stall_s,
        "major_faults": resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults,
    }


def generation() -> dict:
    """Writes a generation at the journal's tail."""
    STATE["run"]._engine.save_generation()
    return {"written": STATE["run"]._engine.generation_bytes_written}


def report() -> dict:
    """process: the peak of this process since it began; above_open: of what the run holds."""
    from pysmezo import memory

    run = STATE["run"]
    peak = memory.peaks()[0]
    return {
        "process": max(STATE["before"], peak),
        "above_open": peak - run.rss_at_open_bytes,
        "held": run._engine.bytes_by_purpose,
    }


def close() -> dict:
    STATE.pop("run").close()
    return {}


def alone(
    model: str,
    method: dict,
    steps: int,
    texts: int = 4,
    tokens: int = 64,
    vocab: int = 32000,
    demo: str | None = None,
    folder: str | None = None,
    **options,
) -> dict:
    """A run of some steps, then `report`. demo: its texts instead of random ids. folder: where the run folder lies."""
    with tempfile.TemporaryDirectory(prefix="run-", dir=folder) as run_dir:
        if demo is None:
            ready = [one_label(batches.unpadded(vocab, texts, tokens)["input_ids"])] * steps
        else:
            ready = [b for b, _ in zip(demo_batches(model, demo, run_dir), range(steps), strict=False)]
        open_run(model, method, str(Path(run_dir) / "run"), **options)
        results = [STATE["run"].train_step(b) for b in ready]
        out = report() | {
            "steps": steps,
            "seconds": [r.seconds for r in results],
            "stall_s": [r.stall_s for r in results],
            "read": results[-1].bytes_read,
            "written": sum(r.bytes_written for r in results),
        }
        close()
        return out


if __name__ == "__main__":
    sys.tracebacklimit = 0
    if len(sys.argv) > 1:
        print(json.dumps(alone(**json.loads(sys.argv[1]))))
    else:
        common.serve({"open": open_run} | {f.__name__: f for f in (batch, step, generation, report, close)})
