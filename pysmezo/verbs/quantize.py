"""The verb quantize: a Hugging Face folder into a new one whose linear weights are NF4 or int8."""

from __future__ import annotations

import os
import time

from .. import _core
from ..cli import OK
from ..memory import peaks, reset_peak
from ..progress import ByteProgress, mib


def add_flags(parser, verb: str) -> None:
    parser.add_argument("--model", metavar="DIR", required=True, help="Hugging Face folder, fp32, fp16 or bf16")
    parser.add_argument("--dtype", metavar="nf4|int8", required=True, help="what block weights are stored in")
    parser.add_argument("--blocksize", type=int, default=64, help="nf4: elements that share an absmax, 32 to 4096 (64)")
    parser.add_argument("--double-quant", action="store_true", help="nf4: the absmax values in 8 bits too")
    parser.add_argument(
        "--keep",
        metavar="INDEX_FILE",
        help="keep the original values of this index set's elements: what trains on it starts from them",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="new folder")
    parser.add_argument("--threads", type=int, default=0, help="default: SMEZO_THREADS, else all CPUs")


def run(arguments, verb: str):
    a = arguments
    reset_peak()
    start = time.monotonic()
    found = _core.quantize_folder(
        os.path.expanduser(a.model),
        os.path.expanduser(a.out),
        a.dtype,
        blocksize=a.blocksize,
        double_quant=a.double_quant,
        threads=a.threads,
        progress=ByteProgress("quantize"),
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
