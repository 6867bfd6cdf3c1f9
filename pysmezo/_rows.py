"""Rows of labelled data from JSON Lines or CSV files, each with the line it begins on. Runs in the tokenizing child."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator

from .errors import ArgumentError, FormatError

WHERE = "data"


def _once(pairs: list[tuple]) -> dict:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise FormatError("a key twice")
    return row


def _jsonl(f, path) -> Iterator[tuple[int, dict]]:
    for line, text in enumerate(f, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text, object_pairs_hook=_once)
        except json.JSONDecodeError as e:
            raise FormatError(
                f"[{WHERE}] line {line} of {path} is not JSON ({e.msg} at column {e.colno}), expected one object a line"
            ) from None
        except FormatError as e:
            raise FormatError(f"[{WHERE}] line {line} of {path} has {e}, expected each once") from None
        except (ValueError, RecursionError) as e:  # thousands of digits or of brackets
            raise FormatError(
                f"[{WHERE}] line {line} of {path} cannot be read ({e}), expected one object a line"
            ) from None
        if not isinstance(row, dict):
            raise FormatError(f"[{WHERE}] line {line} of {path} holds {type(row).__name__}, expected one object a line")
        yield line, row


def _csv(f, path) -> Iterator[tuple[int, dict]]:
    csv.field_size_limit(1 << 30)
    reader = csv.reader(f, strict=True)
    try:
        header = next(reader, None)
        if not header:
            return
        if len(set(header)) != len(header):
            raise FormatError(f"[{WHERE}] {path} has a column twice ({', '.join(header)}), expected each once")
        line = reader.line_num + 1
        for fields in reader:
            if fields:
                if len(fields) != len(header):
                    raise FormatError(
                        f"[{WHERE}] line {line} of {path} has {len(fields)} fields, expected {len(header)} as in its "
                        "header"
                    )
                yield line, dict(zip(header, fields, strict=True))
            line = reader.line_num + 1
    except csv.Error as e:
        raise FormatError(f"[{WHERE}] line {reader.line_num} of {path} is not CSV: {e}") from None


READERS = {".jsonl": _jsonl, ".json": _jsonl, ".csv": _csv}


def rows(path) -> Iterator[tuple[int, dict]]:
    """(line, row) of each example. ArgumentError: unknown ending or unreadable file; FormatError: the line and what is
    wrong with it.
    """
    reader = READERS.get(os.path.splitext(path)[1].lower())
    if reader is None:
        raise ArgumentError(f"[{WHERE}] {path}, expected a file that ends in .jsonl or .csv")
    try:
        with open(path, encoding="utf-8-sig", newline="") as f:
            yield from reader(f, path)
    except OSError as e:
        raise ArgumentError(f"[{WHERE}] {path}: {e.strerror}, expected a readable data file") from None
    except UnicodeDecodeError as e:
        raise FormatError(
            f"[{WHERE}] {path} is not UTF-8 text (byte {e.object[e.start]:#04x}), expected UTF-8"
        ) from None


def text_of(row: dict, column: str, at: str) -> str:
    value = row.get(column)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise FormatError(
                f"[{WHERE}] column {column!r} of {at} holds half a character (a lone surrogate), expected text"
            ) from None
        return value
    if isinstance(value, int) and not isinstance(value, bool) or isinstance(value, float) and math.isfinite(value):
        return str(value)
    if column not in row:
        raise ArgumentError(
            f"[{WHERE}] {at} has no column {column!r}, expected one of its columns: {', '.join(map(str, row))}"
        )
    found = str(value) if isinstance(value, float) else type(value).__name__
    raise ArgumentError(f"[{WHERE}] column {column!r} of {at} holds {found}, expected a text")


def label_of(row: dict, column: str, n_options: int, at: str) -> int:
    value = row.get(column)
    if column not in row:
        raise ArgumentError(
            f"[{WHERE}] {at} has no column {column!r}, expected the label there (label_column of the task)"
        )
    try:
        label = (
            int(value) if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)) else None
        )
    except ValueError:
        label = None
    if label is None or not 0 <= label < n_options:
        raise ArgumentError(
            f"[{WHERE}] label {value!r} of {at}, expected an integer from 0 to {n_options - 1} (the task has "
            f"{n_options} label words)"
        )
    return label
