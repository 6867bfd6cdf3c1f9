"""Dense directions on a static set of elements, over a base that stays as it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real
from typing import ClassVar

from ..errors import ArgumentError
from .base import Method


@dataclass(frozen=True, kw_only=True)
class Sensitive(Method):
    """A static index set over a base that stays as it is, quantized or not; its values train in fp32 beside it (SensZOQ, Guo et al. 2024,
    arXiv 2406.02913).

    index: a file of sorted element numbers by tensor name (safetensors, I32 or I64): source "calibrated"; `pysmezo sensitivity` makes one.
    Over a folder that `pysmezo quantize --keep INDEX_FILE` made, each element that was kept starts from its original value, whatever set it is
    now in; every other one, as without --keep, from what its quantized weight decodes to (`Runtime.notes` counts them where some were not
    kept). Elements that are kept but do not train stay as quantized.
    fraction, with no index file (or a number in its place, Sensitive(0.001)): that share of each block matrix instead, one element in every run of 1/fraction, drawn from the run's seed; a
    control, and what memory and speed are measured with.
    """

    index: str | None = field(default=None, kw_only=False, metadata={"path": True})
    fraction: float = 0.001
    source: str | None = None
    trains: str = "linear"
    name: ClassVar[str] = "sensitive"

    def __post_init__(self):
        if isinstance(self.index, Real) and not isinstance(self.index, bool) and self.fraction == Sensitive.fraction:
            object.__setattr__(self, "fraction", self.index)
            object.__setattr__(self, "index", None)
        if self.index == "":
            raise ArgumentError("[Sensitive] index '', expected the path of an index file")
        super().__post_init__()
        wanted = "random" if self.index is None else "calibrated"
        if self.source not in (None, wanted):
            raise ArgumentError(
                f"[Sensitive] source {self.source!r} {'without' if self.index is None else 'with'} an index file, expected"
                f" {wanted!r}"
            )
        if self.index is not None and self.fraction != Sensitive.fraction:
            raise ArgumentError(
                f"[Sensitive] fraction {self.fraction} beside an index file, expected one of them: the file says which elements train"
            )
        object.__setattr__(self, "source", wanted)

    def parts(self) -> dict:
        parts = super().parts() | {"index_set": "random" if self.index is None else "file"}
        parts.pop("source", None)
        return parts | ({} if self.index is None else {"fraction": 0.0})

    @classmethod
    def fields_of(cls, parts: dict) -> dict:
        found = super().fields_of(parts)
        if parts.get("index_hash"):
            found.pop("fraction", None)
        return found


@dataclass(frozen=True, kw_only=True)
class MaZO(Method):
    """The largest weights of every row train (the row-wise mask of MaZO, Zhang et al. 2025, arXiv 2502.11513), in fp32 beside a base that
    stays as it is.

    fraction: of each row, at least one element. The paper's score adds curvature and gradients of several tasks to |w|; here it is |w|, and a
    set by gradients is `Sensitive(index=FILE)` with a file of `pysmezo sensitivity --per row`.
    """

    fraction: float = field(default=0.01, kw_only=False)
    trains: str = "linear"
    name: ClassVar[str] = "mazo"
    PARTS: ClassVar[dict] = {"index_set": "rows"}


@dataclass(frozen=True, kw_only=True)
class RandomRows(Method):
    """Whole rows of each matrix train, a share of them drawn from the run's seed, in fp32 beside a base that stays as it is: a control for
    sets that are chosen by element.

    fraction: of the rows of a matrix, at least one.
    """

    fraction: float = field(default=0.01, kw_only=False)
    trains: str = "linear"
    name: ClassVar[str] = "random-rows"
    PARTS: ClassVar[dict] = {"index_set": "whole-rows"}
