"""Some rows of a large matrix of the base (embedding, head) in fp32, without the rest of it in memory."""

from __future__ import annotations

import json
import os
import struct

import numpy as np

from .errors import IoError, io_error


def _from_bf16(raw: np.ndarray) -> np.ndarray:
    wide = raw.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


# dtype of safetensors -> (what its bytes are read as, what makes fp32 of them)
STORED = {
    "F32": (np.dtype("<f4"), lambda raw: raw),
    "F16": (np.dtype("<f2"), lambda raw: raw.astype(np.float32)),
    "BF16": (np.dtype("<u2"), _from_bf16),
}


class BaseRows:
    """Rows of matrix `name` [n_rows, n_cols] of the folder that `run` has opened and proved. A matrix stored in another
    way than as plain numbers is decoded whole, by the core.
    """

    def __init__(self, run, name: str):
        self.n_rows, self.n_cols = next((r, c) for n, r, c, _ in run._engine.tensors if n == name)
        self._file, self._whole = None, None
        path, dtype, self._at = _place(run.model_dir, name)
        if dtype not in STORED:
            self._whole = run.weights(name)
            return
        self._stored, self._decode = STORED[dtype]
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as e:
            raise io_error("base", e, path) from None

    def rows(self, begin: int, end: int) -> np.ndarray:
        """fp32 [end - begin, n_cols]"""
        if self._whole is not None:
            return self._whole[begin:end]
        raw = np.empty((end - begin, self.n_cols), self._stored)
        read_all(self._file, raw, self._at + begin * raw.itemsize * self.n_cols)
        return self._decode(raw)

    def take(self, ids: np.ndarray) -> np.ndarray:
        """fp32 [len(ids), n_cols]: these rows, each read once."""
        own, places = np.unique(ids, return_inverse=True)
        return np.concatenate([self.rows(int(i), int(i) + 1) for i in own])[places]

    def close(self) -> None:
        self._whole = None
        if self._file is not None:
            os.close(self._file)
            self._file = None


def read_all(file: int, into: np.ndarray, offset: int) -> None:
    """Fills a contiguous array from a place of a file. IoError: it ends first, or cannot be read."""
    view, done = memoryview(into).cast("B"), 0
    while done < len(view):
        try:
            n = os.preadv(file, [view[done:]], offset + done)
        except OSError as e:
            raise io_error("read", e) from None
        if n == 0:
            raise IoError(
                f"[read] a file ends {len(view) - done} bytes early, expected it as long as before; cut short?"
            )
        done += n


def _place(folder, name: str) -> tuple[str, str, int]:
    """(file, dtype, where its bytes begin) of a tensor; the core has proved all headers."""
    path = os.path.join(folder, "model.safetensors")
    try:
        if not os.path.exists(path):
            with open(os.path.join(folder, "model.safetensors.index.json"), encoding="utf-8") as f:
                path = os.path.join(folder, json.load(f)["weight_map"][name])
        with open(path, "rb") as f:
            (n,) = struct.unpack("<Q", f.read(8))
            entry = json.loads(f.read(n))[name]
    except OSError as e:
        raise io_error("base", e) from None
    return path, entry["dtype"], 8 + n + entry["data_offsets"][0]
