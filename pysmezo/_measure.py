"""The measured child, `python -m pysmezo._measure JSON`: opens a model, takes steps on random tokens, and says on
standard output, an object a line, when it opened and what the engine counts after opening and after each step.

It is a process of its own so that what it holds is what a training process holds; its parent looks at it from outside.
"""

from __future__ import annotations

import json
import sys
import time

from . import children, memory, planning
from .methods import from_dict
from .runtime import Runtime

# Batches are made before the model is opened and used in turn: making them is not the run's memory.
N_BATCHES = 8
# Numbers, since on random text there is nothing to find them by; neither changes what is held.
LR, EPS = 1e-6, 1e-3


def tell(kind: str, **fields) -> None:
    # The clock is the parent's too. What is resident now comes along: a phase may end between two looks from outside.
    print(json.dumps({"type": kind, "at": time.monotonic(), **memory.resident(), **fields}), flush=True)


def measured(s: dict) -> None:
    shape = s["batch"], s["length"], s["vocab_size"], s["label_options"]
    batches = [planning.random_batch(*shape, seed) for seed in range(min(s["steps"], N_BATCHES))]
    peak_is_reset = memory.reset_peak()
    tell("opening", peak_is_reset=peak_is_reset)
    with Runtime.from_pretrained(method=from_dict(s["method"]), lr=LR, eps=EPS, **s["runtime"]) as run:
        tell(
            "held",
            phase="opening",
            rss_at_open_bytes=run.rss_at_open_bytes,
            bytes_by_purpose=run._engine.bytes_by_purpose,
        )
        for step in range(1, s["steps"] + 1):
            r = run.train_step(batches[step % len(batches)])
            tell(
                "held",
                phase=f"step {step}",
                bytes_by_purpose=run._engine.bytes_by_purpose,
                seconds=r.seconds,
                stall_s=r.stall_s,
                bytes_read=r.bytes_read,
                bytes_written=r.bytes_written,
            )


if __name__ == "__main__":
    (text,) = sys.argv[1:]
    sys.exit(children.main(lambda: measured(json.loads(text)), "bench memory"))
