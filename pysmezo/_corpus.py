"""Plain text -> sequences of exactly so many tokens, cut out of one stream. Runs in the tokenizing child."""

from __future__ import annotations

import os
from collections.abc import Iterator

from . import _core
from ._encode import CHUNK, encoded, head_of, model_limits
from ._rows import rows, text_of
from .errors import ArgumentError, FormatError

WHERE = "data"
# Sequences are drawn from the beginning of a long text: so many times as many tokens as they have.
DRAWN_FROM = 256
PIECE = 1 << 16  # characters of a .txt encoded at once, and the rest of the line


def _texts(corpus, name: str) -> Iterator[str]:
    if not isinstance(corpus, str):
        yield from corpus
    elif corpus.lower().endswith(".txt"):
        try:
            with open(corpus, encoding="utf-8-sig") as f:
                while piece := f.read(PIECE):
                    yield piece + f.readline(PIECE)
        except OSError as e:
            raise ArgumentError(f"[{WHERE}] {corpus}: {e.strerror}, expected a readable text file") from None
        except UnicodeDecodeError as e:
            raise FormatError(f"[{WHERE}] {corpus} is not UTF-8 text ({e.reason}), expected UTF-8") from None
    elif corpus.lower().endswith((".jsonl", ".json", ".csv")):
        yield from (text_of(row, "text", f"line {line} of {name}") for line, row in rows(corpus))
    else:
        raise ArgumentError(
            f"[{WHERE}] {corpus}, expected a file that ends in .txt, or in .jsonl or .csv with a column 'text'"
        )


def sequences(corpus, tokenizer, model_dir, n: int, length: int, seed: int) -> list[list[int]]:
    """n lists of `length` ids: windows of the stream of all texts, no two the same, drawn by the seed and in its order.

    corpus: the path of a .txt, or of rows with a column "text", or a list of texts. Each row begins with the tokens
    that the tokenizer puts before a text; where it puts none, rows are two newlines apart. A .txt is one text.
    ArgumentError: too little text.
    """
    path, (_, n_ids) = os.path.join(model_dir, "tokenizer.json"), model_limits(model_dir)
    name = os.path.basename(corpus) if isinstance(corpus, str) else "the texts"
    head, one_text = head_of(tokenizer, path), isinstance(corpus, str) and corpus.lower().endswith(".txt")
    stream: list[int] = list(head) if one_text else []
    enough, waiting = n * length * DRAWN_FROM, []

    def take() -> None:
        for e in encoded(tokenizer, path, waiting, False):
            stream.extend(e.ids if one_text else head + e.ids)
        waiting.clear()

    for text in _texts(corpus, name):
        waiting.append(text if one_text or head else text + "\n\n")
        if len(waiting) == (1 if one_text else CHUNK):
            take()
            if len(stream) >= enough:
                break
    take()
    if max(stream, default=0) >= (n_ids or 1 << 31):
        raise FormatError(
            f"[tokenize] {path} gives token id {max(stream)}, expected ids below {n_ids}, the vocab_size of "
            "config.json; another model's tokenizer?"
        )
    n_windows = len(stream) // length
    if n_windows < n:
        raise ArgumentError(
            f"[{WHERE}] {name} makes {len(stream)} tokens, expected at least {n * length} for {n} sequences of {length}; "
            "give more text, or fewer or shorter sequences"
        )
    chosen = sorted(_core.permutation(seed, 0, n_windows)[:n].tolist())
    return [stream[i * length : (i + 1) * length] for i in chosen]
