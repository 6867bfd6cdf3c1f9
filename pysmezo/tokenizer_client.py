"""The training process's end of a tokenizing child: text batches, prompts and generated ids go over pipes, one JSON
object a line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress

import numpy as np

from . import children
from .data import TaskBatch, task_argument
from .errors import ArgumentError


class TokenizerClient:
    """Starts the child at the first request and keeps it until close(). Not for use from several threads at once."""

    def __init__(self, model_dir, task=None, max_length: int | None = None, truncate: bool = False):
        self._arguments = ["--serve", "--model", os.path.abspath(model_dir)]
        if task is not None:
            self._arguments += ["--task", task_argument(task)]
        if max_length is not None:
            self._arguments += ["--max-length", str(max_length)]
        if truncate:
            self._arguments.append("--truncate")
        self._child: subprocess.Popen | None = None

    def batch(self, rows: list[dict]) -> TaskBatch:
        """[{"text": ..., "label": int}, ...] with the task's columns -> TaskBatch."""
        if not rows:
            raise ArgumentError("[tokenize] an empty batch, expected at least one example")
        a = self._ask({"rows": rows})
        prompts = [np.asarray(p, np.int32) for p in a["prompts"]]
        options = a["options"]
        shared = all(own == options[0] for own in options)
        return TaskBatch(prompts, options[0] if shared else options, np.asarray(a["labels"], np.int32))

    def encode(self, text: str) -> list[int]:
        """Token ids with the tokenizer's own special tokens."""
        return self._ask({"text": text})["ids"]

    def decode(self, ids, skip_special_tokens: bool = True) -> str:
        return self._ask({"ids": [int(i) for i in ids], "skip_special_tokens": skip_special_tokens})["text"]

    def sequences(self, corpus, n: int, length: int, seed: int) -> np.ndarray:
        """ids int32 [n, length], drawn from plain text; corpus: the path of a file, or texts (_corpus.py)."""
        corpus = os.path.abspath(corpus) if isinstance(corpus, (str, os.PathLike)) else list(corpus)
        found = self._ask({"corpus": corpus, "n": n, "length": length, "seed": seed})["sequences"]
        return np.asarray(found, np.int32)

    def close(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        for pipe in (child.stdin, child.stdout, child.stderr):
            with suppress(BrokenPipeError):  # what a child that ended was not told
                pipe.close()
        child.wait()

    def _ask(self, request: dict) -> dict:
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "pysmezo._tokenize", *self._arguments],
                env=children.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True, encoding="utf-8", start_new_session=True,  # an interrupt is the trainer's to handle
            )  # fmt: skip
        try:
            line = json.dumps(request, default=_plain)
        except TypeError as e:
            raise ArgumentError(f"[tokenize] {e} in a batch, expected texts and numbers") from None
        try:
            with suppress(BrokenPipeError):  # it ended already; its last words are read below
                self._child.stdin.write(line + "\n")
                self._child.stdin.flush()
            answer = self._child.stdout.readline()
        except BaseException:
            # An answer that nobody has read would be taken for that to the next request.
            self._child.kill()
            self.close()
            raise
        if not answer:
            stderr, code = self._child.stderr.read(), self._child.wait()
            self._child = None
            children.raise_error(stderr, code, "tokenize")
        answer = json.loads(answer)
        if "error" in answer:
            name, message = answer["error"]
            children.raise_error(f"{name}: {message}", 2, "tokenize")
        return answer


def _plain(x):
    """numpy integers and floats as JSON numbers."""
    if hasattr(x, "item"):
        return x.item()
    raise TypeError(f"a {type(x).__name__}")
