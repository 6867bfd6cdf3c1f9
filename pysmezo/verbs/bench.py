"""The verb bench: its subcommands as a table."""

from __future__ import annotations

import argparse
import json
import os
import time

from .. import _core, shapes
from ..cli import OK
from ..errors import ArgumentError
from ..memory import peaks, reset_peak
from ..progress import WorkProgress, mib
from . import bench_memory

# --dtype of make-model -> (block weights in NF4, their absmax in 8 bits)
MODEL_DTYPES = {"bf16": (False, False), "nf4": (True, False), "nf4-dq": (True, True)}


def make_model_flags(parser) -> None:
    parser.add_argument("--shape", metavar="S", required=True, help=f"one of {', '.join(shapes.SHAPES)}")
    parser.add_argument("--dtype", metavar="D", required=True, help=f"one of {', '.join(MODEL_DTYPES)}")
    parser.add_argument("--out", metavar="DIR", required=True, help="new folder")
    parser.add_argument("--layers", type=int, metavar="N", help="default: the shape's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="default: SMEZO_THREADS, else all CPUs")


def make_model(a):
    """A random-weight model of a named shape: config.json and safetensors, no tokenizer."""
    if a.dtype not in MODEL_DTYPES:
        raise ArgumentError(f"[make-model] dtype {a.dtype!r}, expected one of {', '.join(MODEL_DTYPES)}")
    if not 0 <= a.seed < 2**64:
        raise ArgumentError(f"[make-model] seed {a.seed}, expected 0 to 2^64 - 1")
    quantized, double = MODEL_DTYPES[a.dtype]
    shape = shapes.shape_of(a.shape, a.layers)
    reset_peak()
    start = time.monotonic()
    n_bytes = _core.write_random_model(
        os.path.expanduser(a.out),
        json.dumps(shapes.config(shape)),
        shapes.tensors(shape),
        quantized,
        double_quant=double,
        seed=a.seed,
        threads=a.threads,
        progress=WorkProgress("make-model"),
    )
    seconds = time.monotonic() - start
    print(f"{a.out}: {a.shape}, {shape.layers} layers, {a.dtype}, {mib(n_bytes)} in {seconds:.1f} s", flush=True)
    return OK, {"bytes_out": n_bytes, "seconds": seconds, "peak_rss_bytes": peaks()[0]}


# subcommand -> (adds its flags, runs it, what it does)
COMMANDS = {
    "make-model": (make_model_flags, make_model, "write a random-weight model of a named shape"),
    "memory": (
        bench_memory.add_flags,
        bench_memory.run,
        "draw what a run holds by purpose over time, beside its budget",
    ),
}


def add_flags(parser, verb: str) -> None:
    chosen = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=type(parser))
    for name, (flags, _, what) in COMMANDS.items():
        sub = chosen.add_parser(name, help=what, description=what, allow_abbrev=False)
        # Given after the subcommand it means the same; its absence there must not undo one given before.
        sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS)
        flags(sub)


def run(arguments, verb: str):
    return COMMANDS[arguments.command][1](arguments)
