"""The passes of a sensitivity calibration, in torch. Only sensitivity.py imports this, and inside a function."""

from __future__ import annotations

import ctypes
import math
from contextlib import closing, contextmanager, suppress

import numpy as np
import torch

from ._torch_layer import Losses, Squares, half_block, mathematics, rms_norm
from .activations import Activations
from .base_rows import BaseRows
from .block_halves import ATTENTION, MLP, WHERE, Model, Plan
from .errors import FormatError


@contextmanager
def settings(n_threads: int):
    """Torch as the passes need it, and afterwards as it was."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(n_threads)
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode(False):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


def give_back() -> None:
    """What the allocator keeps of freed arrays goes back to the system, where it is glibc's: up to 32 MiB each, it may
    keep them for others that do not fit between what is left.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Calibration:
    """Slots of `kept`, [L, D] for each sequence: the input of each block; then the last block's output; then the gradient
    with respect to what the last pass ended at. Going back, the slot above a block serves its inner state.
    """

    def __init__(self, m: Model, ids: np.ndarray, kept: Activations, plan: Plan, progress):
        """ids: int64 [n, L]. progress(GFLOPs done, in all)."""
        self._m, self._ids, self._kept, self._plan = m, ids, kept, plan
        self._math = mathematics(m.config, m.head_dim, ids.shape[1])
        self._squares = Squares()
        self._gradient = m.n_blocks + 1
        self._progress, self._flops = progress, 0

    def run(self, take) -> list[float]:
        """The loss of each sequence; take(name, F fp32 [rows, cols]) once for each chosen matrix.
        FormatError: a loss or a gradient is not finite.
        """
        self._embed()
        for b in range(self._m.n_blocks):
            self._forward(ATTENTION, b, b, b + 1)
            self._forward(MLP, b, b + 1, b + 1)
        losses = self._head()
        for b in reversed(range(self._m.lowest, self._m.n_blocks)):
            self._forward(ATTENTION, b, b, b + 1)
            self._backward(MLP, b, b + 1, take)
            self._backward(ATTENTION, b, b, take)
        self._progress(self._plan.gflops, self._plan.gflops)
        return losses

    def _did(self, n_weights: int, times: int) -> None:
        """A sequence went through so many weights."""
        self._flops += 2 * n_weights * times * self._ids.shape[1]
        self._progress(min(self._plan.gflops - 1, self._flops // 10**9), self._plan.gflops)

    def _get(self, slot: int, i: int) -> torch.Tensor:
        return torch.from_numpy(self._kept.get(slot, i))

    def _load(self, kind: str, block: int) -> dict[str, torch.Tensor]:
        give_back()
        m, at = self._m, f"model.layers.{block}."
        return {name: torch.from_numpy(m.run.weights(at + name)) for name in m.half(kind, block)}

    def _embed(self) -> None:
        with closing(BaseRows(self._m.run, "model.embed_tokens.weight")) as embedding:
            for i, own in enumerate(self._ids):
                self._kept.put(0, i, embedding.take(own))

    def _forward(self, kind: str, block: int, source: int, to: int) -> None:
        w = self._load(kind, block)
        with torch.no_grad():
            for i in range(len(self._ids)):
                y = half_block(kind, self._get(source, i), w, self._math, self._squares)
                self._kept.put(to, i, y.numpy())
                self._did(self._m.n_weights(kind, block), 1)

    def _backward(self, kind: str, block: int, source: int, take) -> None:
        """Through half a block whose inputs are in `source`: the gradient of its output becomes that of its input."""
        w = self._load(kind, block)
        sums = self._squares.sums = {name: torch.zeros_like(w[name]) for name in self._m.chosen(kind, block)}
        for i in range(len(self._ids)):
            with torch.enable_grad():
                x = self._get(source, i).requires_grad_()
                half_block(kind, x, w, self._math, self._squares).backward(self._get(self._gradient, i))
            self._kept.put(self._gradient, i, x.grad.numpy())
            self._did(self._m.n_weights(kind, block), 3)
        w.clear()  # selecting needs room too
        while sums:
            name, f = sums.popitem()
            name, f = f"model.layers.{block}.{name}", f.div_(len(self._ids)).numpy()
            if not math.isfinite(f.max()):
                raise FormatError(f"[{WHERE}] a gradient of {name} is not finite, expected finite weights; damaged?")
            take(name, f)

    def _head(self) -> list[float]:
        """The losses of all sequences, and the gradient of what the last block gives."""
        m, last, found = self._m, self._m.n_blocks, Losses(self._ids)
        norm, n = torch.from_numpy(m.run.weights("model.norm.weight")), len(self._ids)
        with closing(BaseRows(m.run, m.head)) as head:
            with torch.no_grad():
                for first in range(0, head.n_rows, self._plan.tile_rows):
                    rows = torch.from_numpy(head.rows(first, min(first + self._plan.tile_rows, head.n_rows)))
                    for i in range(n):
                        h = rms_norm(self._get(last, i), norm, self._math.eps)
                        mean = found.add(i, h, rows, first, self._get(self._gradient, i) if first else None)
                        self._kept.put(self._gradient, i, mean.numpy())
                        self._did(rows.numel(), 2)
            for i in range(n):
                if not math.isfinite(found.of(i)):
                    raise FormatError(
                        f"[{WHERE}] loss {found.of(i)} of sequence {i}, expected a finite one; damaged weights?"
                    )
                targets = torch.from_numpy(head.take(self._ids[i, 1:]))
                with torch.enable_grad():
                    x = self._get(last, i).requires_grad_()
                    h = rms_norm(x, norm, self._math.eps)
                    h.backward(found.gradient(i, self._get(self._gradient, i), targets))
                self._kept.put(self._gradient, i, x.grad.numpy())
        return [found.of(i) for i in range(n)]
