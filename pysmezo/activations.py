"""What is kept of a forward pass for the backward one, in memory or in a file."""

from __future__ import annotations

import os
from contextlib import suppress

import numpy as np

from .base_rows import read_all
from .errors import io_error


class Activations:
    """fp32 arrays [length, width] by (slot, sequence), in memory or in a nameless file of a folder.

    Reads and writes go through buffers, so that of the file only the page cache holds more, which is the system's.
    """

    def __init__(self, n_slots: int, n_sequences: int, length: int, width: int, folder=None):
        """folder: where the file is made; None: in memory."""
        self._shape, self._n = (length, width), n_sequences
        self._bytes = 4 * length * width
        self._file, self._values = None, None
        if folder is None:
            self._values = np.empty((n_slots, n_sequences, length, width), np.float32)
            return
        self._name = os.path.join(folder, f".pysmezo-activations-{os.getpid()}")
        self._total = n_slots * n_sequences * self._bytes
        try:
            self._file = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            os.remove(self._name)  # whatever ends this process, nothing stays
            os.posix_fallocate(self._file, 0, self._total)  # a full disk is told now
        except OSError as e:
            self.close()
            with suppress(OSError):
                os.remove(self._name)
            raise io_error("activations", e, self._name, self._total) from None

    def get(self, slot: int, i: int) -> np.ndarray:
        """Not to be written into: in memory it is the stored one."""
        if self._file is None:
            return self._values[slot, i]
        out = np.empty(self._shape, np.float32)
        read_all(self._file, out, (slot * self._n + i) * self._bytes)
        return out

    def put(self, slot: int, i: int, values: np.ndarray) -> None:
        if self._file is None:
            self._values[slot, i] = values
            return
        view, at = memoryview(np.ascontiguousarray(values)).cast("B"), (slot * self._n + i) * self._bytes
        while len(view):
            try:
                n = os.pwrite(self._file, view, at)
            except OSError as e:
                raise io_error("activations", e, self._name, self._total) from None
            view, at = view[n:], at + n

    def close(self) -> None:
        self._values = None
        if self._file is not None:
            os.close(self._file)
            self._file = None
