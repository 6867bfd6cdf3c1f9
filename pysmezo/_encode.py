"""Rows -> token ids: the template filled in, label words tokenized in context, the length limit kept. Runs in the
tokenizing child, which is the only place that imports tokenizers.
"""

from __future__ import annotations

import json
import os

from ._rows import label_of, text_of
from .errors import ArgumentError, FormatError
from .tasks import Task, pieces

WHERE = "tokenize"
# Rows encoded at once: enough for the tokenizer's threads, little enough to hold.
CHUNK = 256


def load_tokenizer(model_dir):
    """The folder's tokenizer.json, without its own truncation and padding."""
    path = os.path.join(model_dir, "tokenizer.json")
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ArgumentError(
            f"[{WHERE}] the package tokenizers is not installed, expected it: pip install tokenizers"
        ) from None
    if not os.path.isfile(path):
        raise ArgumentError(f"[{WHERE}] {path} is not there, expected a model folder with its tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as e:  # the library raises plain Exception
        raise FormatError(
            f"[{WHERE}] {path}: {' '.join(str(e).split())}, expected what the package tokenizers writes; damaged, or of a "
            "newer version?"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def model_limits(model_dir) -> tuple[int, int | None]:
    """(max_position_embeddings, vocab_size or None where it is not said) of config.json. (Dynamic rope goes further, one text at a time;
    training data does not.)
    """
    path = os.path.join(model_dir, "config.json")
    try:
        with open(path, encoding="utf-8") as f:
            config = json.load(f)
        n_ids = config.get("vocab_size")
        return int(config["max_position_embeddings"]), n_ids if isinstance(n_ids, int) else None
    except OSError as e:
        raise ArgumentError(f"[{WHERE}] {path}: {e.strerror}, expected a model folder with its config.json") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise FormatError(
            f"[{WHERE}] {path} has no max_position_embeddings, expected one: the longest text in tokens"
        ) from None


def encoded(tokenizer, path: str, texts: list[str], add_special_tokens: bool) -> list:
    """The library's encodings. path: of the tokenizer, for the error."""
    try:
        return tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
    except Exception as e:  # the library raises plain Exception
        raise FormatError(f"[{WHERE}] {path}: {' '.join(str(e).split())}, expected it to encode any text") from None


def head_of(tokenizer, path: str) -> list[int]:
    """The special tokens that the tokenizer's own post-processor puts before a text (a BOS, for models that have one)."""
    plain, special = (encoded(tokenizer, path, ["a"], add)[0].ids for add in (False, True))
    starts = [i for i in range(len(special) - len(plain) + 1) if special[i : i + len(plain)] == plain]
    return special[: starts[0]] if starts else []


def _fill(parts: list[tuple[str, bool]], values: dict) -> str:
    return "".join(values[text] if hole else text for text, hole in parts)


class Encoder:
    """Encodes rows of one task with one tokenizer.

    Special tokens come at the head exactly where the tokenizer's own post-processor puts them (a BOS, for models that
    have one); those it would append are left off, since the answer follows the prompt.
    """

    def __init__(self, tokenizer, task: Task, max_length: int, truncate: bool, model_dir):
        self.tokenizer, self.task, self.max_length, self.truncate = tokenizer, task, max_length, truncate
        self.path, (_, self.n_ids) = os.path.join(model_dir, "tokenizer.json"), model_limits(model_dir)
        self.template = pieces(task.template)
        self.words = [pieces(w) for w in task.label_words]
        self.head = head_of(tokenizer, self.path)

    def ids(self, texts: list[str]) -> list[list[int]]:
        found = [self.head + e.ids for e in encoded(self.tokenizer, self.path, texts, False)]
        most = max((max(own, default=0) for own in found), default=0)
        if self.n_ids is not None and most >= self.n_ids:
            raise FormatError(
                f"[{WHERE}] {self.path} gives token id {most}, expected ids below {self.n_ids}, the vocab_size of "
                "config.json; another model's tokenizer?"
            )
        return found

    def rows(self, rows: list[dict], places: list[str]) -> tuple[list[list[int]], list[list[list[int]]], list[int]]:
        """(prompts, options of each example, labels); places name the rows in errors ("line 3 of train.jsonl")."""
        n_options = len(self.words)
        prompts, options, labels = [], [], []
        for start in range(0, len(rows), CHUNK):
            chunk, at = rows[start : start + CHUNK], places[start : start + CHUNK]
            values = [{c: text_of(row, c, p) for c in self.task.columns} for row, p in zip(chunk, at, strict=True)]
            labels += [label_of(row, self.task.label_column, n_options, p) for row, p in zip(chunk, at, strict=True)]
            texts = [self._texts(v) for v in values]
            flat = self.ids([t for own in texts for t in own])
            for i, v in enumerate(values):
                own = flat[i * (n_options + 1) : (i + 1) * (n_options + 1)]
                if max(map(len, own)) > self.max_length:
                    own = self._shortened(v, own, at[i])
                prompts.append(own[0])
                options.append([self._option(own[0], full, texts[i], k, at[i]) for k, full in enumerate(own[1:])])
        return prompts, options, labels

    def _texts(self, values: dict) -> list[str]:
        """The prompt, then the prompt with each label word."""
        prompt = _fill(self.template, values)
        return [prompt, *(prompt + _fill(w, values) for w in self.words)]

    def _option(self, prompt: list[int], full: list[int], texts: list[str], k: int, at: str) -> list[int]:
        option = full[len(prompt) :]
        if not prompt or full[: len(prompt)] != prompt or not option:
            found = (
                "the prompt is empty"
                if not prompt
                else f"label word {texts[k + 1][len(texts[0]) :]!r} runs into the end of the prompt"
            )
            raise ArgumentError(
                f"[{WHERE}] {found} in {at}, expected tokens of its own after the prompt's; "
                "begin label words with a space and end the template without one"
            )
        return option

    def _shortened(self, values: dict, own: list[list[int]], at: str) -> list[list[int]]:
        """Cuts the end of the longest column until the whole fits: the template, its tail above all, stays."""
        longest = max(map(len, own))
        if not self.truncate:
            raise ArgumentError(
                f"[{WHERE}] {at} is {longest} tokens long, expected at most {self.max_length}; shorten it, say --truncate, "
                "or, below the model's own limit, raise --max-length"
            )
        values = dict(values)
        columns = [c for c in dict.fromkeys(t for t, hole in self.template if hole)]
        while longest > self.max_length:
            column = max(columns, key=lambda c: len(values[c]))
            text = values[column]
            if not text:
                raise ArgumentError(
                    f"[{WHERE}] {at} is {longest} tokens long with its columns empty, expected at most "
                    f"{self.max_length}"
                )
            ends = [end for _, end in self.tokenizer.encode(text, add_special_tokens=False).offsets]
            keep = len(ends) - (longest - self.max_length)
            cut = ends[keep - 1] if keep > 0 else 0
            # Offsets of byte-level tokens may end past a cut inside a character; always lose at least one.
            values[column] = text[: min(cut, len(text) - 1)]
            own = self.ids(self._texts(values))
            longest = max(map(len, own))
        return own
