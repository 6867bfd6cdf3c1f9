"""Tokenized data sets and the order in which training sees them.

Owns Dataset, TaskBatch and the order. Tokenizing itself is the child's (_tokenize.py): this process never loads a
tokenizer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from . import children, ids
from .errors import ArgumentError


@dataclass
class TaskBatch:
    """What a step reads of a choice task. prompts: B arrays of token ids. options: n_options lists of token ids shared
    by all examples, or B such lists. labels: int32 [B].
    """

    prompts: list[np.ndarray]
    options: list
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.prompts)


class Dataset:
    """Tokenized examples over an id file; token arrays are views of the mapped file."""

    def __init__(self, file: ids.IdFile):
        self._file = file

    @classmethod
    def open(cls, path) -> Dataset:
        return cls(ids.read(path))

    def __len__(self) -> int:
        return len(self._file)

    @property
    def n_options(self) -> int:
        return self._file.n_options

    @property
    def shared_options(self) -> bool:
        return self._file.shared

    @property
    def options(self) -> list[list[int]]:
        """The options of every example. ArgumentError when each example has its own: ask options_of(i)."""
        if not self._file.shared:
            raise ArgumentError("[data] every example has options of its own here, expected options_of(i)")
        return self._file.options(0)

    def options_of(self, i: int) -> list[list[int]]:
        return self._file.options(i)

    @property
    def labels(self) -> np.ndarray:
        return self._file.labels

    def line(self, i: int) -> int:
        """Line of the source file on which example i begins, from 1."""
        return int(self._file.lines[i])

    def example(self, i: int) -> tuple[np.ndarray, int]:
        return self._file.prompt(i), int(self._file.labels[i])

    @property
    def max_length(self) -> int:
        """Longest prompt with its longest option, in tokens."""
        f = self._file
        prompt = np.diff(f.prompt_offsets)
        option = np.diff(f.option_offsets).reshape(-1, f.n_options).max(axis=1)
        return int((prompt + option).max())

    def longest(self, n: int) -> TaskBatch:
        """The n examples of the most tokens: no batch of n holds more. All of them where there are fewer."""
        f = self._file
        prompt, option = np.diff(f.prompt_offsets), np.diff(f.option_offsets).reshape(-1, f.n_options).sum(axis=1)
        tokens = prompt + (option if len(option) == len(prompt) else option[0])
        return self.gather(np.argsort(tokens, kind="stable")[::-1][:n].tolist())

    def gather(self, indices) -> TaskBatch:
        f = self._file
        options = f.options(0) if f.shared else [f.options(i) for i in indices]
        return TaskBatch([f.prompt(i) for i in indices], options, np.asarray(f.labels[np.asarray(indices)], np.int32))

    def in_order(self, batch_size: int) -> Iterator[TaskBatch]:
        """Every example once, in file order, for evaluation; the last batch may be smaller."""
        for start in range(0, len(self), batch_size):
            yield self.gather(range(start, min(start + batch_size, len(self))))

    def batches(self, seed: int, batch_size: int, start_step: int = 0) -> Iterator[TaskBatch]:
        """Training batches without end, from step `start_step` on.

        Each epoch is a permutation of the data addressed by (seed, epoch); a batch may span two epochs, so step s
        always reads places [s * batch_size, (s + 1) * batch_size) of the endless sequence, and resuming is arithmetic.
        """
        step = start_step
        while True:
            yield self.gather(self.indices_of(seed, batch_size, step))
            step += 1

    def indices_of(self, seed: int, batch_size: int, step: int) -> list[int]:
        """The examples of one step."""
        if batch_size < 1:
            raise ArgumentError(f"[data] batch size {batch_size}, expected at least 1")
        n, out = len(self), []
        place, end = step * batch_size, (step + 1) * batch_size
        while place < end:
            epoch, offset = divmod(place, n)
            take = min(end - place, n - offset)
            out += self._order(seed, epoch)[offset : offset + take].tolist()
            place += take
        return out

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        key = (seed, epoch)
        if getattr(self, "_order_key", None) != key:
            from . import _core

            self._order_key, self._order_value = key, np.asarray(_core.permutation(seed, epoch, len(self)))
        return self._order_value


def task_argument(task) -> str:
    """A task as the child's --task takes it: a path, or JSON."""
    if isinstance(task, (str, os.PathLike)):
        return os.path.abspath(task)
    return json.dumps(task if isinstance(task, dict) else task.to_dict())


def tokenize(model_dir, source, task, out, max_length: int | None = None, truncate: bool = False) -> Dataset:
    """The data file `source` (.jsonl or .csv), tokenized into the id file `out`, which is reused when nothing it
    depends on has changed.

    max_length: longest prompt plus option in tokens; the model's own limit when None. truncate: cut longer texts
    instead of refusing them.
    """
    arguments = [
        "--model",
        os.path.abspath(model_dir),
        "--data",
        os.path.abspath(source),
        "--task",
        task_argument(task),
        "--out",
        str(out),
    ]
    if max_length is not None:
        arguments += ["--max-length", str(max_length)]
    if truncate:
        arguments.append("--truncate")
    children.run("_tokenize", arguments)
    return Dataset.open(out)
