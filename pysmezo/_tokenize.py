"""The tokenizing child, `python -m pysmezo._tokenize`: a loaded tokenizer costs 43 to 340 MB, which the training
process must not carry.

Two ways to run it:
    --data F --out IDS   tokenizes a data file into an id file (ids.py), unless its key says it is already there
    --serve              answers requests on standard input until it closes, one JSON object a line each way:
                         {"rows": [...]} -> {"prompts", "options", "labels"}
                         {"text": ...}   -> {"ids"}
                         {"ids": [...]}  -> {"text"}
                         {"corpus": file or texts, "n", "length", "seed"} -> {"sequences"}
Errors: exit code 2 with `Type: [where] message` as the last line of standard error; when serving, an answer
{"error": [type, message]}.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys

from . import children, ids
from ._corpus import sequences
from ._encode import Encoder, load_tokenizer, model_limits
from ._rows import rows
from .errors import ArgumentError, PysmezoError
from .tasks import Task, load

# Part of the key: raised when the same inputs would give other ids.
ENCODING_VERSION = 1


def _task(text: str) -> Task:
    return load(json.loads(text) if text.lstrip().startswith("{") else text)


def _key(model_dir, data, task: Task, max_length: int, truncate: bool) -> bytes:
    h = hashlib.sha256()
    settings = {"encoding": ENCODING_VERSION, "task": task.to_dict(), "max_length": max_length, "truncate": truncate}
    h.update(json.dumps(settings, sort_keys=True).encode())
    for path in (os.path.join(model_dir, "tokenizer.json"), data):
        try:
            content = hashlib.sha256()
            with open(path, "rb") as f:
                while block := f.read(1 << 20):
                    content.update(block)
            h.update(content.digest())
        except OSError as e:
            raise ArgumentError(f"[tokenize] {path}: {e.strerror}, expected a readable file") from None
    return h.digest()


def tokenize_file(model_dir, data, task: Task, out, max_length: int, truncate: bool) -> None:
    key = _key(model_dir, data, task, max_length, truncate)
    if ids.read_key(out) == key:
        try:
            ids.read(out)
            return
        except PysmezoError:
            pass  # damaged: made again
    lines, content = [], []
    for line, row in rows(data):
        lines.append(line)
        content.append(row)
    if not content:
        raise ArgumentError(f"[data] {data} holds no example, expected at least one")
    name = os.path.basename(data)
    encoder = Encoder(load_tokenizer(model_dir), task, max_length, truncate, model_dir)
    prompts, options, labels = encoder.rows(content, [f"line {n} of {name}" for n in lines])
    # Label words without columns may still tokenize differently after different prompts.
    shared = all(own == options[0] for own in options)
    ids.write(out, key, prompts, options[0] if shared else options, labels, lines, shared)


def _answer(request: dict, tokenizer, encoder: Encoder | None, model_dir) -> dict:
    if "rows" in request:
        if encoder is None:
            raise ArgumentError("[tokenize] rows of text without a task, expected task= when the runtime was opened")
        content = request["rows"]
        prompts, options, labels = encoder.rows(content, [f"example {i} of the batch" for i in range(len(content))])
        return {"prompts": prompts, "options": options, "labels": labels}
    if "ids" in request:
        return {"text": tokenizer.decode(request["ids"], skip_special_tokens=request.get("skip_special_tokens", True))}
    if "corpus" in request:
        return {"sequences": sequences(tokenizer=tokenizer, model_dir=model_dir, **request)}
    return {"ids": tokenizer.encode(request["text"]).ids}


def serve(model_dir, task: Task | None, max_length: int, truncate: bool) -> None:
    tokenizer = load_tokenizer(model_dir)
    encoder = Encoder(tokenizer, task, max_length, truncate, model_dir) if task else None
    for line in sys.stdin:
        try:
            answer = _answer(json.loads(line), tokenizer, encoder, model_dir)
        except PysmezoError as e:
            answer = {"error": [type(e).__name__, str(e)]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def main(argv=None) -> None:
    p = argparse.ArgumentParser(prog="pysmezo._tokenize")
    p.add_argument("--model", required=True)
    p.add_argument("--task")
    p.add_argument("--data")
    p.add_argument("--out")
    p.add_argument("--serve", action="store_true")
    p.add_argument("--max-length", type=int)
    p.add_argument("--truncate", action="store_true")
    a = p.parse_args(argv)
    task = _task(a.task) if a.task else None
    limit, _ = model_limits(a.model)
    max_length = a.max_length if a.max_length is not None else limit
    if not 2 <= max_length <= limit:
        raise ArgumentError(f"[tokenize] max length {max_length}, expected 2 to {limit}, the model's own limit")
    if a.serve:
        serve(a.model, task, max_length, a.truncate)
    else:
        tokenize_file(a.model, a.data, task, a.out, max_length, a.truncate)


if __name__ == "__main__":
    sys.exit(children.main(main, "tokenize"))
