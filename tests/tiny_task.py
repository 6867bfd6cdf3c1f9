"""A tiny labelled task for tests: a byte-level tokenizer trained on the spot, a task file, and rows whose label is easy
to see.
"""

from __future__ import annotations

import json
from pathlib import Path

GOOD = ["bright", "lovely", "fine", "warm", "clever"]
BAD = ["dull", "awful", "cold", "stale", "clumsy"]
TASK_YAML = 'template: "{text} It was"\nlabel_words: [" terrible", " great"]\nlabel_column: label\n'


def rows(n: int) -> list[dict]:
    """n rows, labels 0 and 1 in turn, no two texts the same."""
    out = []
    for i in range(n):
        words = (BAD, GOOD)[i % 2]
        text = f"the film {i // 10} is {words[i // 2 % 5]} and {words[(i // 2 + 1) % 5]} ."
        out.append({"text": text, "label": i % 2})
    return out


def write_jsonl(path, content) -> Path:
    path = Path(path)
    path.write_text("".join(json.dumps(r) + "\n" for r in content), encoding="utf-8")
    return path


def write_tokenizer(folder, vocab_size: int = 320, bos: bool = False) -> Path:
    """tokenizer.json of a byte-level BPE; with bos, its post-processor puts <s> (id 0) first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    t.train_from_iterator([r["text"] + " It was terrible great" for r in rows(100)] * 3, trainer)
    if bos:
        t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    t.save(str(folder / "tokenizer.json"))
    return folder


def write_config(folder, max_length: int = 64) -> Path:
    """A config.json that holds the length limit only: what the tokenizing child reads of it."""
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({"max_position_embeddings": max_length}))
    return path
