"""The verb quantize: a Hugging Face folder into a new one whose linear weights are NF4 or int8."""

from __future__ import annotations

import os
import time

from .. import _core, options
from ..cli import OK
from ..errors import ArgumentError
from ..memory import peaks, reset_peak
from ..progress import WorkProgress, mib


def add_flags(parser, verb: str) -> None:
    parser.add_argument("--model", metavar="DIR", required=True, help="Hugging Face folder, fp32, fp16 or bf16")
    parser.add_argument("--dtype", metavar="nf4|int8", required=True, help="what block weights are stored in")
    parser.add_argument("--blocksize", metavar="N", help="nf4: elements that share an absmax, 32 to 4096 (64)")
    parser.add_argument("--double-quant", action="store_true", help="nf4: the absmax values in 8 bits too")
    parser.add_argument(
        "--keep",
        metavar="INDEX_FILE",
        help="keep the original values of this index set's elements: what trains on it starts from them",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="new folder")
    options.add_flags(parser, ("threads",))


def run(arguments, verb: str):
    a = arguments
    if a.dtype == "int8" and a.blocksize is not None:
        raise ArgumentError(f"[quantize] --blocksize {a.blocksize} with int8, expected nf4: int8 scales whole rows")
    blocksize = 64 if a.blocksize is None else options.converted(options.at_least(1), a.blocksize, "--blocksize")
    threads = options.BY_NAME["threads"]
    threads = options.converted(threads.convert, a.threads, threads.flag) if "threads" in a else 0
    reset_peak()
    start = time.monotonic()
    found = _core.quantize_folder(
        os.path.expanduser(a.model),
        os.path.expanduser(a.out),
        a.dtype,
        blocksize=blocksize,
        double_quant=a.double_quant,
        threads=threads,
        progress=WorkProgress("quantize"),
        keep="" if a.keep is None else os.path.expanduser(a.keep),
    )
    seconds = time.monotonic() - start
    originals = f", originals of {found['n_originals']} elements" if a.keep is not None else ""
    print(
        f"{a.out}: {found['n_quantized']} weights in {a.dtype}, {found['n_kept']} kept{originals}; "
        f"{mib(found['bytes_in'])} to {mib(found['bytes_out'])} in {seconds:.1f} s",
        flush=True,
    )
    return OK, {**found, "seconds": seconds, "peak_rss_bytes": peaks()[0]}
