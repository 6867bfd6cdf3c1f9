"""The batches that speed is measured on, the same token ids for torch and for us.

`unpadded`: 16 texts of 64 random tokens. `demo`: the demo's own training texts, padded to the longest of the batch as a
collator does, on the right or on the left. The demo's files come from `pysmezo demo --prepare DIR`.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

PROMPT, WORDS = "{text} It was", (" terrible", " great")
PAD = 2


def unpadded(vocab: int, rows: int = 16, columns: int = 64, seed: int = 0) -> dict:
    rng = random.Random(seed)
    return {"input_ids": [[rng.randrange(100, vocab) for _ in range(columns)] for _ in range(rows)]}


def last_label_only(ids: list[list[int]]) -> list[list[int]]:
    """Labels at one position a text: -100 everywhere but in the last column."""
    return [[-100] * (len(row) - 1) + row[-1:] for row in ids]


def demo_examples(folder: Path, rows: int = 16, index: int = 0) -> list[dict]:
    """One batch of the demo's training examples, {text, label}."""
    lines = (folder / "train.jsonl").read_text().split("\n")[:-1]  # not splitlines: texts hold other separators
    return [json.loads(line) for line in lines[index * rows : (index + 1) * rows]]


def padded(ids: list[list[int]], side: str = "right") -> dict:
    """Token ids, mask and labels (the last real token alone is a label) as a collator gives them."""
    width = max(len(row) for row in ids)
    out: dict = {"input_ids": [], "attention_mask": [], "labels": []}
    for row in ids:
        fill = width - len(row)
        for key, values, blank in (
            ("input_ids", row, PAD),
            ("attention_mask", [1] * len(row), 0),
            ("labels", [-100] * (len(row) - 1) + row[-1:], -100),
        ):
            out[key].append(values + [blank] * fill if side == "right" else [blank] * fill + values)
    return out


def demo_padded(encode, examples: list[dict], side: str = "right") -> dict:
    """`encode(texts) -> ids`. A text is the filled prompt with its right label word after it."""
    return padded(encode([PROMPT.format(text=e["text"]) + WORDS[int(e["label"])] for e in examples]), side)
