"""Which elements of the linear weights matter most: SensZOQ's calibration (Guo et al. 2024, arXiv 2406.02913).

F = mean over calibration sequences of the squared gradient of a sequence's mean next-token loss. The largest become an
index set, which `Sensitive(index=...)` trains and `quantize --keep` keeps.

In memory at once are the weights of half a decoder block in fp32, read from the base by the core, and as many sums of
squares; the inputs of the blocks lie in memory where they have room, else in a file. The order is: forward, keeping the
input of each block; the head by tiles of its rows, which leaves the gradient of the last block's output; then from the
last block to the first the attention half forward again, the MLP half backward, the attention half backward. What a half
leaves of F goes through the selection at once and is forgotten.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from contextlib import ExitStack, closing

import numpy as np

from . import index_file, memory
from .activations import Activations
from .block_halves import WHERE, Model, plan_of
from .errors import ArgumentError
from .methods.mezo import LEAST
from .progress import mib
from .runtime import Runtime
from .top_elements import PER, TopElements


def _torch():
    """The passes. ArgumentError: there is no torch."""
    try:
        from . import _torch_calibration
    except ImportError as e:
        if e.name != "torch":
            raise
        raise ArgumentError(
            f"[{WHERE}] the package torch is not installed, expected it for gradients: pip install 'pysmezo[torch]'"
        ) from None
    return _torch_calibration


def sensitivity(
    model,
    data,
    fraction: float = 0.001,
    out=None,
    *,
    per: str = "global",
    sequences: int = 32,
    length: int = 256,
    seed: int = 0,
    trains: str = "linear",
    memory_budget=None,
    threads: int | None = None,
    progress=None,
    say=None,
    scores=None,
) -> dict:
    """Writes the index file `out` (None: nothing is written) and returns what is in it and what it took.

    model: a Hugging Face folder in any format that Runtime opens. data: text that is not the task, as the path of a .txt
    or of a .jsonl or .csv with a column "text", or a list of texts, of which `sequences` sequences of `length` tokens are
    drawn by `seed`; or the ids themselves, [n, length]. per: the top fraction of all elements (global), of each matrix
    (tensor) or of each matrix row (row; at least one element each). trains: "linear" or a glob pattern over names, as a
    method has it. memory_budget: bytes to hold above what the process has with torch imported; activations go to a
    nameless file beside `out` where they do not fit. None: they do so above 256 MiB. progress(GFLOPs done, in all); say(a
    line of text); scores(name, F fp32 [rows, cols]) for each matrix, valid during the call. fraction: more than 0, at most
    0.5. Returned: the file's facts (fraction, per, n_elements, n_candidates, data_hash, base_fingerprint and others), n_tensors,
    elements_by_kind, threshold, loss (nats a token), seconds, activation_bytes, and predicted_peak_bytes and peak_bytes above
    the process with torch imported.
    ArgumentError, FormatError, BudgetError, IoError. MemoryError: the system gave no more.
    """
    _check(fraction, per, sequences, length)
    budget = memory.parse_bytes(memory_budget)
    torch_side = _torch()
    if out is not None:
        index_file.check_writable(out)
    ids = _ids(model, data, sequences, length, seed)
    at_start, begin = memory.rss_bytes(), time.monotonic()
    with ExitStack() as stack:
        run = stack.enter_context(Runtime.from_pretrained(model, method=LEAST, values="fp32", threads=threads))
        _check_ids(ids, run._engine)
        m = Model(run, trains)
        plan = plan_of(m, *ids.shape, per, fraction, budget)
        folder = None if plan.in_memory else os.path.dirname(os.path.abspath(out)) if out else os.getcwd()
        if say is not None:
            say(_described(plan, m, ids, folder))
        kept = stack.enter_context(closing(Activations(m.n_blocks + 2, *ids.shape, m.width, folder)))
        stack.enter_context(torch_side.settings(run._engine.threads))
        top = TopElements(per, fraction, m.sizes)

        def take(name: str, f: np.ndarray) -> None:
            if scores is not None:
                scores(name, f)
            top.add(name, f)

        losses = torch_side.Calibration(m, ids, kept, plan, progress or (lambda done, total: None)).run(take)
        fingerprint = json.loads(run._engine.header_json)["base_fingerprint"]
    lists = top.lists()
    facts = {
        "fraction": fraction,
        "per": per,
        "trains": trains,
        "n_sequences": ids.shape[0],
        "length": ids.shape[1],
        "data_hash": hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest(),
        "base_fingerprint": fingerprint,
        "n_elements": sum(map(len, lists.values())),
        "n_candidates": sum(m.sizes.values()),
    }
    if out is not None:
        n_bytes = index_file.write(out, lists, m.sizes, {key: str(value) for key, value in facts.items()})
        facts |= {"out": str(out), "file_bytes": n_bytes}
    return {
        **facts,
        "n_tensors": len(lists),
        "elements_by_kind": _by_kind(lists),
        "threshold": top.threshold,
        "loss": float(np.mean(losses)),
        "seconds": time.monotonic() - begin,
        "activations_in_memory": plan.in_memory,
        "activation_bytes": plan.activation_bytes,
        "predicted_peak_bytes": plan.peak_bytes,
        "peak_bytes": memory.peaks()[0] - at_start,
        "peak_rss_bytes": memory.peaks()[0],
    }


def _described(plan, m: Model, ids: np.ndarray, folder) -> str:
    kept = "in memory" if folder is None else f"in a file in {folder}"
    return (
        f"{ids.shape[0]} sequences of {ids.shape[1]} tokens, {m.n_blocks} blocks, {plan.gflops} GFLOPs; "
        f"{mib(plan.peak_bytes)} beside torch at most, activations ({mib(plan.activation_bytes)}) {kept}"
    )


def _by_kind(lists: dict[str, np.ndarray]) -> dict[str, int]:
    """Elements by the name of the matrix within its block."""
    found: Counter = Counter()
    for name, elements in lists.items():
        found[name.split(".")[-2]] += len(elements)
    return dict(found.most_common())


# --------------------------------------------------------------------------------------------------------------- checks


def _check(fraction, per, sequences, length) -> None:
    if not (isinstance(fraction, (int, float)) and 0 < fraction <= 0.5):
        raise ArgumentError(f"[{WHERE}] fraction {fraction!r}, expected more than 0 and at most 0.5, such as 0.001")
    if per not in PER:
        raise ArgumentError(f"[{WHERE}] per {per!r}, expected one of {', '.join(PER)}")
    if sequences < 1 or length < 2:
        raise ArgumentError(
            f"[{WHERE}] {sequences} sequences of {length} tokens, expected at least one of at least 2: the first "
            "predicts the second"
        )


def _ids(model, data, sequences: int, length: int, seed: int) -> np.ndarray:
    """int64 [n, length]"""
    text = isinstance(data, (str, os.PathLike))
    if text or (isinstance(data, (list, tuple)) and data and isinstance(data[0], str)):
        if text and not os.path.isfile(data):
            raise ArgumentError(
                f"[{WHERE}] {data} is no file, expected a .txt, or a .jsonl or .csv with a column 'text'"
            )
        from .tokenizer_client import TokenizerClient

        with closing(TokenizerClient(model, max_length=length)) as client:
            return client.sequences(data, sequences, length, seed).astype(np.int64)
    try:
        ids = np.asarray(data)
    except ValueError:  # rows of several lengths
        ids = np.empty(0)
    if ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] < 2 or ids.dtype.kind not in "iu":
        raise ArgumentError(
            f"[{WHERE}] data of shape {ids.shape} and type {ids.dtype}, expected a path, texts, or ids [n, length] with "
            "sequences of one length, at least 2"
        )
    return ids.astype(np.int64)


def _check_ids(ids: np.ndarray, engine) -> None:
    if ids.shape[1] > engine.max_length:
        raise ArgumentError(
            f"[{WHERE}] sequences of {ids.shape[1]} tokens, expected at most {engine.max_length}, the model's own limit"
        )
    if ids.min() < 0 or ids.max() >= engine.vocab_size:
        wrong = ids.max() if ids.max() >= engine.vocab_size else ids.min()
        raise ArgumentError(f"[{WHERE}] token id {wrong}, expected 0 to {engine.vocab_size - 1}; another tokenizer's?")
