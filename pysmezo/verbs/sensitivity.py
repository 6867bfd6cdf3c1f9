"""The verb sensitivity: the elements of the linear weights that matter most, as an index file."""

from __future__ import annotations

import os
import sys

from .. import options
from ..cli import OK
from ..progress import WorkProgress, clock, mib


def add_flags(parser, verb: str) -> None:
    parser.add_argument(
        "--data",
        metavar="F",
        required=True,
        help="general text, not the task that will be trained: .txt, or .jsonl or .csv with a column 'text'; its texts are "
        "put one after the other and cut into sequences",
    )
    parser.add_argument("--fraction", metavar="X", default="0.001", help="share of the elements to choose (0.001)")
    parser.add_argument("--out", metavar="INDEX_FILE", required=True, help="the index file (safetensors) to write")
    parser.add_argument(
        "--per",
        metavar="global|tensor|row",
        default="global",
        help="what a share is of: all chosen weights together (default), each matrix, each row of each matrix",
    )
    parser.add_argument("--sequences", metavar="N", default="32", help="calibration sequences (32)")
    parser.add_argument("--length", metavar="L", default="256", help="tokens of each (256)")
    parser.add_argument(
        "--trains",
        metavar="GLOB",
        default="linear",
        help="linear (all linear weights of the blocks), or a pattern over their names such as '*.mlp.*'",
    )
    parser.add_argument(
        "--memory-budget",
        metavar="X",
        help="bytes to hold above what Python and torch take, such as 2GiB; the blocks' inputs go to a nameless file beside "
        "--out where they do not fit (default: where they take more than 256 MiB)",
    )
    options.add_flags(parser, ("model", "seed", "threads"))


def run(arguments, verb: str):
    from ..sensitivity import sensitivity

    a, given = arguments, vars(arguments)
    options.require(given, "model")
    rows = {name: options.BY_NAME[name] for name in ("model", "seed", "threads")}
    own = {n: options.converted(o.convert, given[n], o.flag) for n, o in rows.items() if n in given}
    found = sensitivity(
        data=options.converted(options.path, a.data, "--data"),
        fraction=options.converted(options.number, a.fraction, "--fraction"),
        out=options.converted(options.path, a.out, "--out"),
        per=a.per,
        sequences=options.converted(options.at_least(1), a.sequences, "--sequences"),
        length=options.converted(options.at_least(2), a.length, "--length"),
        trains=a.trains,
        memory_budget=a.memory_budget,
        progress=WorkProgress("sensitivity", "GFLOP"),
        say=lambda text: print(text, file=sys.stderr, flush=True),
        **own,
    )
    kinds = ", ".join(f"{name} {n / found['n_elements']:.0%}" for name, n in found["elements_by_kind"].items())
    print(
        f"{os.path.relpath(a.out)}: {found['n_elements']} of {found['n_candidates']} elements of {found['n_tensors']} "
        f"weights ({kinds}); loss {found['loss']:.4f}; {clock(found['seconds'])}, peak {mib(found['peak_rss_bytes'])}",
        flush=True,
    )
    return OK, found
