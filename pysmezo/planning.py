"""What a run will hold, read and take, from headers alone: batches of a shape for the core's planner, this machine's
rates, and what would fit when a budget does not.
"""

from __future__ import annotations

import json
import os
from numbers import Integral, Real

import numpy as np

from . import _core, memory, packing
from .errors import ArgumentError, BudgetError

QUANTIZED = {"nf4": "NF4", "int8": "I8"}
DEFAULT_LENGTH = 64


def is_number(value) -> bool:
    """A real number, numpy's included."""
    return isinstance(value, Real) and not isinstance(value, bool)


def engine_arguments(
    model,
    method,
    *,
    memory_budget=None,
    run_dir=None,
    seed=0,
    dtype="auto",
    threads=None,
    operand="nearest",
    reduction="example",
    sync_every=1,
    delta=None,
    values="auto",
    generation_every=0,
    stream_trained=False,
    n_readers=2,
    ring_bytes=0,
    cached_reads=False,
    device="cpu",
    journal=None,
    replay_to=None,
) -> dict:
    """The keyword arguments that `_core.Engine` and `_core.Planner` take. dtype nf4 and int8 say how the base is stored; inputs of products
    are rounded as with auto then. ArgumentError: an option out of its range, or one of streaming without a memory budget."""
    for name, value, least, most in (
        ("seed", seed, 0, (1 << 64) - 1),
        ("threads", threads, 1, 1024),
        ("sync_every", sync_every, 1, 1 << 30),
        ("generation_every", generation_every, 0, 1 << 30),
        ("n_readers", n_readers, 0, 64),
        ("ring_bytes", ring_bytes, 0, 1 << 40),
    ):
        if name == "threads" and value is None:
            continue
        if not isinstance(value, Integral) or isinstance(value, bool) or not least <= value <= most:
            raise ArgumentError(f"[{name}] {value!r}, expected an integer from {least} to {most}")
    if memory_budget is None:
        for name, value in (
            ("stream_trained", stream_trained),
            ("cached_reads", cached_reads),
            ("ring_bytes", ring_bytes),
        ):
            if value:
                raise ArgumentError(f"[{name}] no memory_budget, expected one: without it nothing is streamed")
    return {
        "model_dir": str(model),
        "run_dir": "" if run_dir is None else str(run_dir),
        "method": method.parts(),
        "dtype": "auto" if dtype in QUANTIZED else dtype,
        "values": values,
        "operand": operand,
        "reduction": reduction,
        "seed": seed,
        "threads": 0 if threads is None else threads,
        "sync_every": sync_every,
        "delta": "" if delta is None else str(delta),
        "memory_budget": memory.parse_bytes(memory_budget) or 0,
        "generation_every": generation_every,
        "stream_trained": stream_trained,
        "n_readers": n_readers,
        "ring_bytes": ring_bytes,
        "cached_reads": cached_reads,
        "device_bytes": device_bytes(device, memory_budget),
        "journal": "" if journal is None else str(journal),
        "replay_to": replay_to,
    }


def device_bytes(device: str, memory_budget) -> int:
    """Bytes of the stand-in for a device, 0 for "cpu". ArgumentError for anything else, and for one without a memory budget."""
    name, _, size = str(device).partition(":")
    if device == "cpu":
        return 0
    if name != "fake" or not size:
        raise ArgumentError(f"[device] {device!r}, expected 'cpu' (or 'fake:SIZE', a stand-in for an accelerator)")
    if memory_budget is None:
        raise ArgumentError("[device] no memory_budget, expected one: what a device uses is read ahead in host memory")
    return memory.parse_bytes(size)


def length_of(given: int | None, s: dict) -> int:
    """Tokens of a text: --length, else --max-length, else a default."""
    return given if given is not None else s["max_length"] or DEFAULT_LENGTH


def planner(model, method, dtype="auto", **options):
    """`_core.Planner`. ArgumentError: dtype names a quantization that the base does not have."""
    p = _core.Planner(**engine_arguments(model, method, dtype=dtype, **options))
    if dtype in QUANTIZED and p.base_dtype != QUANTIZED[dtype]:
        raise ArgumentError(
            f"[dtype] {dtype}, but {model} holds {p.base_dtype}, expected a base that is {dtype} already; "
            f"`pysmezo quantize --dtype {dtype}` makes one"
        )
    return p


def core_batch(p: packing.Packed):
    return _core.Batch(p.tokens, p.segments, p.labels, p.n_examples, p.task, p.n_options, p.candidates, p.answers)


def shaped(batch: int, length: int, vocab_size: int, options=None) -> packing.Packed:
    """A batch of that many texts of that many tokens each, spread over the vocabulary. options: a choice task's label words as lists
    of ids, the longest counted in `length`; None: one label a text."""
    return _filled(batch, length, options, lambda *shape: _spread(*shape, vocab_size))


def random_batch(batch: int, length: int, vocab_size: int, options=None, seed: int = 0) -> packing.Packed:
    """A batch of the shape that `shaped` has, of random tokens: what memory and speed are measured on."""
    rng = np.random.default_rng(seed)
    return _filled(batch, length, options, lambda *shape: rng.integers(0, vocab_size, shape))


def _filled(batch: int, length: int, options, ids_of) -> packing.Packed:
    if batch < 1 or length < 2:
        raise ArgumentError(f"[batch] {batch} texts of {length} tokens, expected at least 1 of at least 2")
    if options is None:
        ids = ids_of(batch, length)
        labels = np.full_like(ids, -100)
        labels[:, -1] = ids[:, -1]
        return packing.pack_sequences({"input_ids": ids, "labels": labels})
    n = max(1, length - max(map(len, options)))
    return packing.pack_choices(list(ids_of(batch, n).astype(np.int32)), options, [0] * batch)


def _spread(batch: int, length: int, vocab_size: int) -> np.ndarray:
    n = batch * length
    return (np.arange(n, dtype=np.int64) * vocab_size // n).reshape(batch, length)


def largest(most: int, fits) -> int | None:
    """The largest n in 1..most that fits, where what is above one that does not fit does not either; None: not even 1."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low or None


def plan(p, batch: int, length: int, n_branches: int, options=None, rates: dict | None = None) -> dict:
    """The planner's answer for batches of a shape; where not even a micro-batch of one text fits also the largest length that would."""
    out = dict(p.plan(core_batch(shaped(batch, length, p.vocab_size, options)), n_branches, **(rates or {})))
    if not out["fits"]:
        found = largest(
            length - 2, lambda n: p.fits(core_batch(shaped(batch, n + 1, p.vocab_size, options)), n_branches)
        )
        out["largest_length"] = None if found is None else found + 1
    return out


def advice(found: dict, batch: int, length: int) -> str:
    """One sentence: why it does not fit and what would."""
    ways = [f"--memory-budget {found['smallest_budget_bytes']}"]
    if found.get("largest_length"):
        ways.append(f"texts of at most {found['largest_length']} tokens")
    return (
        f"[memory_budget] {found['budget_bytes']} bytes, expected at least {found['smallest_budget_bytes']} for {batch} texts of {length} "
        f"tokens; it would fit with {' or '.join(ways)}"
    )


def check_budget(p, sets: dict, batch: int, n_train: int) -> None:
    """BudgetError unless the longest batches of training and evaluation fit. sets: Dataset by name; n_train: branches of a step."""
    for name, data in sets.items():
        n, n_branches = (batch, n_train) if name == "train" else (2 * batch, 1)
        longest = data.longest(n)
        packed = packing.pack_choices(longest.prompts, longest.options, longest.labels)
        core = core_batch(packed)
        if p.fits(core, n_branches):
            continue
        raise BudgetError(advice(dict(p.plan(core, n_branches)), len(longest), data.max_length))


def kept_rates(model) -> dict:
    """What `doctor` measured on this machine, as the planner takes it; {} when it has not run here."""
    from .verbs.doctor import cache_file

    try:
        with open(cache_file(), encoding="utf-8") as f:
            report = json.load(f)
        c = report["compute"]
        disks = report.get("disks", {})
        disk = disks.get(str(os.stat(model).st_dev), report["disk"])
        return {
            "gemm_flops_per_s": c["gemm_flops_per_s"],
            "operands_per_s": c["operands_per_s"],
            "updates_per_s": c["updates_per_s"],
            "read_bytes_per_s": disk["read_bytes_per_s"] or 0.0,
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}
