"""Dense directions on a part of each matrix that a mask names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from .base import Method


@dataclass(frozen=True, kw_only=True)
class SparseMeZO(Method):
    """Perturbs and updates the small weights of each matrix, |w| <= h (Liu et al. 2024, arXiv 2402.15751).

    sparsity: the *frozen* fraction; h is the k-th smallest |w0| of a matrix with k = round((1 - sparsity) * n), ties in. 0 equals MeZO bit for
    bit. The mask is read from the current weights at every step, so the trained set can only shrink: what has left it stays where it
    is, whatever its momentum. Whatever `trains` names has a threshold of its own, with "all" norms and embeddings too.
    """

    sparsity: float = field(default=0.75, kw_only=False)
    trains: str = "linear"
    name: ClassVar[str] = "sparse-mezo"
    PARTS: ClassVar[dict] = {"mask": "small"}


@dataclass(frozen=True, kw_only=True)
class LargestMask(Method):
    """The other end, a control: trains the largest weights, |w| >= h, of every step; sparsity is the frozen fraction."""

    sparsity: float = field(default=0.75, kw_only=False)
    trains: str = "linear"
    name: ClassVar[str] = "largest-mask"
    PARTS: ClassVar[dict] = {"mask": "large"}


@dataclass(frozen=True, kw_only=True)
class RandomMask(Method):
    """A random fixed mask, a control (R-MeZO of arXiv 2402.15751): Bernoulli at the density that SparseMeZO realises on each matrix,
    to 1/65536."""

    sparsity: float = field(default=0.75, kw_only=False)
    trains: str = "linear"
    name: ClassVar[str] = "random-mask"
    PARTS: ClassVar[dict] = {"mask": "random"}
