"""Batches -> what the core reads: packed tokens without padding, segments, labels.

Owns the translation only; nothing here computes a loss. Shapes: B sequences of length L in, T packed tokens out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .errors import ArgumentError

LANGUAGE_MODEL, CHOICE_CANDIDATES, CHOICE_SEQUENCES = "language_model", "choice_candidates", "choice_sequences"


@dataclass
class Packed:
    """tokens int32 [T]; segments int64 [n, 3] (start, len, parent or -1); labels int32 [n_labels, 4] (position, target or -1, example,
    option); candidates int32 [n_options]; answers int32 [n_examples]; task: one of the three names above."""

    tokens: np.ndarray
    segments: np.ndarray
    labels: np.ndarray
    n_examples: int
    task: str = LANGUAGE_MODEL
    n_options: int = 0
    candidates: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    answers: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    shared_options: bool = True


def _host(x, name: str) -> np.ndarray:
    """torch tensors, numpy arrays and lists of integers to numpy, without importing torch."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
    try:
        x = np.asarray(x)
    except ValueError:
        raise ArgumentError(f"[batch] {name} of different lengths, expected [B, L]: pad the shorter ones") from None
    if x.dtype.kind not in "iub":
        raise ArgumentError(f"[batch] {name} of type {x.dtype}, expected integers")
    return x.astype(np.int64)


def pack_sequences(batch: dict) -> Packed:
    """dict(input_ids [B, L], attention_mask [B, L] (optional), labels [B, L] (-100 ignored)), torch / numpy / lists -> Packed.

    A label at column t is predicted from the position before it, as in transformers. Padding may be on either side; a label on the first
    real token has no position before it and is ignored.
    """
    where = "batch"
    for key in batch:
        if key not in ("input_ids", "attention_mask", "labels", "token_type_ids"):
            raise ArgumentError(f"[{where}] key {key!r}, expected input_ids, attention_mask, labels")
    for key in ("input_ids", "labels"):
        if key not in batch:
            raise ArgumentError(f"[{where}] no {key!r}, expected dict(input_ids, attention_mask, labels)")
    ids = _host(batch["input_ids"], "input_ids")
    labels = _host(batch["labels"], "labels")
    mask = np.ones_like(ids)
    if batch.get("attention_mask") is not None:
        mask = _host(batch["attention_mask"], "attention_mask")
    if ids.ndim != 2 or ids.shape != labels.shape or ids.shape != mask.shape:
        raise ArgumentError(
            f"[{where}] shapes input_ids {ids.shape}, attention_mask {mask.shape}, labels {labels.shape}, expected the same [B, L] three times"
        )
    for name, x in (("input_ids", ids), ("labels", labels)):
        if x.size and not (-(1 << 31) <= x.min() and x.max() < 1 << 31):
            raise ArgumentError(f"[{where}] {name} of {x.min()} to {x.max()}, expected token ids of the vocabulary")
    tokens, segments, out, start = [], [], [], 0
    for example in range(ids.shape[0]):
        columns = np.flatnonzero(mask[example])
        if columns.size == 0:
            raise ArgumentError(f"[{where}] sequence {example} is all padding, expected at least one token")
        if columns[-1] - columns[0] + 1 != columns.size:
            raise ArgumentError(
                f"[{where}] attention_mask of sequence {example} has holes, expected padding at the ends only"
            )
        tokens.append(ids[example, columns])
        segments.append((start, columns.size, -1))
        for i in range(1, columns.size):
            target = labels[example, columns[i]]
            if target != -100:
                out.append((start + i - 1, target, example, 0))
        start += columns.size
    if not out:
        raise ArgumentError(f"[{where}] no label besides -100, expected at least one token to learn from")
    return Packed(
        np.concatenate(tokens).astype(np.int32),
        np.asarray(segments, np.int64),
        np.asarray(out, np.int32).reshape(-1, 4),
        ids.shape[0],
    )


def pack_choices(prompts, options, answers) -> Packed:
    """Multiple choice.

    prompts: B arrays of token ids; options: n_options lists of token ids shared by every example, or B such lists; answers: B ints.
    Options of one token each, shared by all: the last position's logits of those tokens are the scores (no option is run through the
    model). Else an option's score is the mean log-probability of its tokens, and the prompt it follows is computed once for all of them.
    """
    where = "batch"
    n = len(prompts)
    if n == 0:
        raise ArgumentError(f"[{where}] no example, expected at least one")
    shared = len(options) > 0 and np.isscalar(options[0][0])
    n_options = len(options) if shared else len(options[0])
    if n_options < 2:
        raise ArgumentError(f"[{where}] {n_options} options, expected at least two")
    for i, a in enumerate(answers):
        if not 0 <= a < n_options:
            raise ArgumentError(f"[{where}] label {a} of example {i}, expected 0 to {n_options - 1}")
    answers = np.asarray(answers, np.int32)
    tokens, segments, labels, start = [], [], [], 0

    if shared and all(len(o) == 1 for o in options):
        candidates = np.asarray([o[0] for o in options], np.int32)
        if len(set(candidates.tolist())) != n_options:
            raise ArgumentError(f"[{where}] two options are the same token, expected different ones")
        for i, p in enumerate(prompts):
            tokens.append(p)
            segments.append((start, len(p), -1))
            start += len(p)
            labels.append((start - 1, -1, i, 0))
        return Packed(
            np.concatenate(tokens).astype(np.int32), np.asarray(segments, np.int64), np.asarray(labels, np.int32), n,
            CHOICE_CANDIDATES, n_options, candidates, answers, shared,
        )  # fmt: skip

    for i, p in enumerate(prompts):
        own = options if shared else options[i]
        if len(own) != n_options:
            raise ArgumentError(
                f"[{where}] example {i} has {len(own)} options, expected {n_options} as the first one has"
            )
        tokens.append(p)
        parent = len(segments)
        segments.append((start, len(p), -1))
        start += len(p)
        last = start - 1
        for o, option in enumerate(own):
            labels.append((last, option[0], i, o))
            # The last token of an option is only predicted, never read.
            if len(option) > 1:
                tokens.append(option[:-1])
                segments.append((start, len(option) - 1, parent))
                labels.extend((start + j - 1, option[j], i, o) for j in range(1, len(option)))
                start += len(option) - 1
    return Packed(
        np.concatenate(tokens).astype(np.int32), np.asarray(segments, np.int64), np.asarray(labels, np.int32), n,
        CHOICE_SEQUENCES, n_options, np.zeros(0, np.int32), answers, shared,
    )  # fmt: skip
