"""The flat id file: tokenized examples, written by the tokenizing child, memory-mapped by the training process.

Little-endian throughout. Header, 96 bytes:

    offset  size  what
         0     8  magic "SMEZOIDS"
         8     4  version, 1
        12     4  flags; bit 0: the options are the same for every example and stored once
        16     8  n_examples, at least 1
        24     8  n_options, at least 2
        32     8  n_prompt_tokens, all examples together
        40     8  n_option_tokens, as stored
        48     8  file size in bytes
        56    32  key: SHA-256 of everything the ids depend on (tokenizer, data, task, length limit)
        88     4  CRC-32 of the payload
        92     4  CRC-32 of bytes 0 to 91

Payload, in this order, with n_sets = 1 when bit 0 is set and n_examples otherwise:

    int64  prompt_offsets [n_examples + 1]           into prompt_tokens; starts at 0, rises by at least 1
    int64  option_offsets [n_sets * n_options + 1]   into option_tokens; likewise
    int32  labels         [n_examples]               0 to n_options - 1
    int32  lines          [n_examples]               line of the source file that the example begins on, from 1
    int32  prompt_tokens  [n_prompt_tokens]          not negative
    int32  option_tokens  [n_option_tokens]          not negative

A reader proves all of it, tokens included, before it hands out anything.
"""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from .errors import FormatError, IoError, io_error

MAGIC, VERSION, SHARED = b"SMEZOIDS", 1, 1
HEADER = struct.Struct("<8sIIqqqqq32sI")
HEADER_BYTES = HEADER.size + 4
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class IdFile:
    """The arrays of one file, as the table above names them."""

    n_options: int
    shared: bool
    prompt_offsets: np.ndarray
    option_offsets: np.ndarray
    labels: np.ndarray
    lines: np.ndarray
    prompt_tokens: np.ndarray
    option_tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def prompt(self, i: int) -> np.ndarray:
        return self.prompt_tokens[self.prompt_offsets[i] : self.prompt_offsets[i + 1]]

    def options(self, i: int) -> list[list[int]]:
        """Token ids of the options of example i (of every example, when shared)."""
        first = 0 if self.shared else i * self.n_options
        bounds = self.option_offsets[first : first + self.n_options + 1].tolist()
        return [self.option_tokens[a:b].tolist() for a, b in zip(bounds, bounds[1:], strict=False)]


def _offsets(lists) -> np.ndarray:
    out = np.zeros(len(lists) + 1, np.int64)
    np.cumsum([len(x) for x in lists], out=out[1:])
    return out


def _flat(lists) -> np.ndarray:
    return np.fromiter((t for x in lists for t in x), np.int32)


def write(path, key: bytes, prompts, options, labels, lines, shared: bool) -> None:
    """options: n_options lists of ids when shared, else n_examples such lists. Written beside, synced, renamed: whole
    or not at all.
    """
    n_options = len(options) if shared else len(options[0])
    sets = options if shared else [o for own in options for o in own]
    arrays = [
        _offsets(prompts),
        _offsets(sets),
        np.asarray(labels, np.int32),
        np.asarray(lines, np.int32),
        _flat(prompts),
        _flat(sets),
    ]
    payload = b"".join(a.astype(a.dtype.newbyteorder("<"), copy=False).tobytes() for a in arrays)
    head = HEADER.pack(
        MAGIC, VERSION, SHARED if shared else 0, len(prompts), n_options, len(arrays[4]), len(arrays[5]),
        HEADER_BYTES + len(payload), key, zlib.crc32(payload),
    )  # fmt: skip
    content = head + struct.pack("<I", zlib.crc32(head)) + payload
    temp = f"{path}.tmp-{os.getpid()}"  # what a kill leaves is removed when the run is opened (csrc/io/file.h)
    try:
        with open(temp, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temp, path)
    except OSError as e:
        with suppress(OSError):
            os.remove(temp)
        raise io_error("ids", e, path, len(content)) from None


def read_key(path) -> bytes | None:
    """The key of a file whose header is sound, else None: a damaged file is made again, not trusted."""
    try:
        with open(path, "rb") as f:
            head = f.read(HEADER_BYTES)
    except OSError:
        return None
    if len(head) != HEADER_BYTES or head[:8] != MAGIC or zlib.crc32(head[:-4]) != struct.unpack("<I", head[-4:])[0]:
        return None
    return HEADER.unpack(head[:-4])[8] if HEADER.unpack(head[:-4])[1] == VERSION else None


def _check(ok: bool, path, found: str) -> None:
    if not ok:
        raise FormatError(f"[ids] {path}: {found}; damaged or cut short: delete it and it is made again")


def read(path) -> IdFile:
    """FormatError: anything in the file is not as the table says. IoError: it cannot be opened."""
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as f:
            head = f.read(HEADER_BYTES)
    except OSError as e:
        raise IoError(f"[ids] {path}: {e.strerror}, expected a readable id file") from None
    _check(len(head) == HEADER_BYTES, path, f"{size} bytes, expected a header of {HEADER_BYTES}")
    magic, version, flags, n, n_options, n_prompt, n_option, file_bytes, _, payload_crc = HEADER.unpack(head[:-4])
    _check(magic == MAGIC, path, f"begins with {magic!r}, expected {MAGIC!r}")
    _check(version == VERSION, path, f"version {version}, expected {VERSION}")
    _check(zlib.crc32(head[:-4]) == struct.unpack("<I", head[-4:])[0], path, "header checksum differs")
    _check(flags in (0, SHARED), path, f"flags {flags:#x}, expected 0 or {SHARED}")
    shared = bool(flags & SHARED)
    _check(
        n >= 1 and n_options >= 2 and n_prompt >= n,
        path,
        f"{n} examples, {n_options} options, {n_prompt} prompt tokens",
    )
    n_sets = 1 if shared else n
    _check(n_option >= n_sets * n_options, path, f"{n_option} option tokens, expected at least {n_sets * n_options}")
    counts = [
        (np.int64, n + 1),
        (np.int64, n_sets * n_options + 1),
        (np.int32, n),
        (np.int32, n),
        (np.int32, n_prompt),
        (np.int32, n_option),
    ]
    wanted = HEADER_BYTES + sum(np.dtype(t).itemsize * c for t, c in counts)
    _check(file_bytes == size == wanted, path, f"{size} bytes, header says {file_bytes}, its counts make {wanted}")

    data = np.memmap(path, np.uint8, mode="r", offset=0)
    crc = 0
    for start in range(HEADER_BYTES, size, CHUNK_BYTES):
        crc = zlib.crc32(data[start : start + CHUNK_BYTES], crc)
    _check(crc == payload_crc, path, "payload checksum differs")
    arrays, at = [], HEADER_BYTES
    for dtype, count in counts:
        end = at + np.dtype(dtype).itemsize * count
        arrays.append(data[at:end].view(np.dtype(dtype).newbyteorder("<")))
        at = end
    prompt_offsets, option_offsets, labels, lines, prompt_tokens, option_tokens = arrays
    for name, offsets, end in (("prompt", prompt_offsets, n_prompt), ("option", option_offsets, n_option)):
        _check(
            offsets[0] == 0 and offsets[-1] == end and bool(np.all(offsets[1:] > offsets[:-1])),
            path,
            f"{name} offsets out of order",
        )
    _check(0 <= labels.min() and labels.max() < n_options, path, f"a label outside 0 to {n_options - 1}")
    _check(lines.min() >= 1, path, "a line below 1")
    _check(prompt_tokens.min() >= 0 and option_tokens.min() >= 0, path, "a negative token id")
    return IdFile(n_options, shared, *arrays)
