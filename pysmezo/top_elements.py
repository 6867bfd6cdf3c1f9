"""The elements with the largest scores of many matrices, exactly, while the scores come and go one matrix at a time.

Larger comes first; of equal scores the element of the earlier tensor, and within a tensor the lower number. So the
answer depends on neither the order in which matrices are added nor on where a list was cut.
"""

from __future__ import annotations

import numpy as np

PER = ("global", "tensor", "row")
PIECE = 1 << 20  # elements looked at at once, and the least that is gathered between two cuts


def n_of(n: int, fraction: float) -> int:
    """Elements of n that make up the fraction, at least one (as n_indexed of csrc/direction/index_set.h)."""
    return min(n, max(1, int(n * fraction + 0.5)))


class TopK:
    """The k largest of the scores added so far, by key. Holds at most k + k / 4 + 2 PIECE entries of 12 bytes."""

    def __init__(self, k: int):
        self.k, self.floor = k, np.float32(-np.inf)  # what is below the floor cannot be among them any more
        self._scores = np.empty(0, np.float32)
        self._keys = np.empty(0, np.int64)
        self._new: list[tuple[np.ndarray, np.ndarray]] = []
        self._n_new = 0

    def add(self, scores: np.ndarray, first: int) -> None:
        """fp32 scores without NaN [n] of keys first, first + 1, ..."""
        for begin in range(0, len(scores), PIECE):
            piece = scores[begin : begin + PIECE]
            at = np.flatnonzero(piece >= self.floor)
            self._new.append((piece[at], at + (first + begin)))
            self._n_new += len(at)
            if self._n_new + len(self._keys) >= self.k + max(self.k // 4, PIECE):
                self._cut()

    def found(self) -> tuple[np.ndarray, np.float32]:
        """(keys of the k largest, increasing; the least score among them)"""
        self._cut()
        return np.sort(self._keys), self._scores.min()

    def _cut(self) -> None:
        scores = np.concatenate([self._scores, *(s for s, _ in self._new)])
        keys = np.concatenate([self._keys, *(k for _, k in self._new)])
        self._new, self._n_new = [], 0
        if len(scores) > self.k:
            self.floor = np.partition(scores, len(scores) - self.k)[len(scores) - self.k]
            chosen = scores > self.floor
            ties = np.flatnonzero(scores == self.floor)
            room = self.k - int(chosen.sum())
            if room < len(ties):
                ties = ties[np.argpartition(keys[ties], room - 1)[:room]]
            chosen[ties] = True
            scores, keys = scores[chosen], keys[chosen]
        self._scores, self._keys = scores, keys


def top_of_rows(scores: np.ndarray, k: int) -> np.ndarray:
    """Element numbers, increasing, of the k largest in each row; scores fp32 [rows, cols] without NaN."""
    rows, cols = scores.shape
    out, step = [], max(1, PIECE // cols)
    for r in range(0, rows, step):
        some = scores[r : r + step]
        least = np.partition(some, cols - k, axis=1)[:, cols - k, None]
        chosen, ties = some > least, some == least
        chosen |= ties & (np.cumsum(ties, axis=1) <= k - chosen.sum(axis=1, keepdims=True))
        out.append(np.flatnonzero(chosen) + r * cols)
    return np.concatenate(out)


class TopElements:
    """Lists of elements by tensor: the top `fraction` of all tensors together, of each, or of each row.

    sizes: n elements of every tensor that will be added, in tensor order.
    """

    def __init__(self, per: str, fraction: float, sizes: dict[str, int]):
        self._per, self._fraction, self._first, total = per, fraction, {}, 0
        for name, n in sizes.items():
            self._first[name] = total
            total += n
        self._all = TopK(n_of(total, fraction)) if per == "global" else None
        self._lists: dict[str, np.ndarray] = {}
        self.threshold: float | None = None  # global only, after lists(): the least score in the set

    def add(self, name: str, scores: np.ndarray) -> None:
        """All of a tensor's scores, fp32 [rows, cols], contiguous; once for each tensor, in any order."""
        if self._all is not None:
            self._all.add(scores.reshape(-1), self._first[name])
        elif self._per == "tensor":
            own = TopK(n_of(scores.size, self._fraction))
            own.add(scores.reshape(-1), 0)
            self._lists[name] = own.found()[0]
        else:
            self._lists[name] = top_of_rows(scores, n_of(scores.shape[1], self._fraction))

    def lists(self) -> dict[str, np.ndarray]:
        """Increasing element numbers, int64, of every tensor that has any, in tensor order."""
        if self._all is None:
            return {name: self._lists[name] for name in self._first}
        keys, least = self._all.found()
        self.threshold = float(least)
        names, firsts = list(self._first), np.fromiter(self._first.values(), np.int64)
        parts = np.split(keys, np.searchsorted(keys, firsts[1:]))
        return {n: p - f for n, f, p in zip(names, firsts, parts, strict=True) if len(p)}
