"""Writes an index set: increasing element numbers under the names of tensors, as csrc/store/index_file.h reads them."""

from __future__ import annotations

import json
import os
import struct
from contextlib import suppress

import numpy as np

from .errors import ArgumentError, io_error

WHERE = "index file"
FORMAT, VERSION = "smezo-index", "1"
NARROW = 1 << 31  # from here on numbers need I64


def _temp(path) -> str:
    return f"{path}.tmp-{os.getpid()}"


def check_writable(path) -> None:
    """Before the work whose result goes there. ArgumentError, IoError: a file of that name could not be written."""
    if os.path.isdir(path):
        raise ArgumentError(f"[{WHERE}] {path} is a folder, expected the name of a file in one")
    try:
        with open(_temp(path), "xb"):
            pass
        os.remove(_temp(path))
    except OSError as e:
        raise io_error(WHERE, e, path) from None


def write(path, lists: dict[str, np.ndarray], sizes: dict[str, int], metadata: dict[str, str]) -> int:
    """safetensors, I32 where a tensor's numbers fit, else I64; the same bytes for the same content. Written beside,
    synced, renamed: whole or not at all. sizes: n elements of each tensor. Returns the file's bytes.
    """
    header: dict = {"__metadata__": {"format": FORMAT, "format_version": VERSION, **metadata}}
    # Wide ones first: every list then begins at a multiple of its element.
    names = sorted(lists, key=lambda name: (sizes[name] < NARROW, name))
    blobs, at = [], 0
    for name in names:
        dtype, of = ("I32", "<i4") if sizes[name] < NARROW else ("I64", "<i8")
        blobs.append(lists[name].astype(of).tobytes())
        header[name] = {"dtype": dtype, "shape": [len(lists[name])], "data_offsets": [at, at + len(blobs[-1])]}
        at += len(blobs[-1])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    n_bytes = 8 + len(text) + at
    try:
        with open(_temp(path), "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            f.writelines(blobs)
            f.flush()
            os.fsync(f.fileno())
        os.replace(_temp(path), path)
        folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name too
        finally:
            os.close(folder)
    except OSError as e:
        with suppress(OSError):
            os.remove(_temp(path))
        raise io_error(WHERE, e, path, n_bytes) from None
    return n_bytes
