"""The rows of `benchmarks.methods`: every method of the table with its default fields, and some with others."""

from __future__ import annotations

from typing import NamedTuple

KINDS_OF_LOW_RANK = ("lozo", "subzero", "tezo")
RANK, LARGE_RANK = 16, 64
# Beside the defaults.
VARIANTS = (
    {"kind": "sensitive", "fraction": 0.01},
    {"kind": "mazo", "fraction": 0.001},
    {"kind": "mezo-adam", "window": 10},
    {"kind": "lozo", "rank": RANK},
    *({"kind": kind, "rank": LARGE_RANK} for kind in KINDS_OF_LOW_RANK),
)
EPS, EPS_OF_CURVATURE = 1e-3, 1e-2  # a second difference of bf16 products is rounding below it


class Row(NamedTuple):
    label: str
    method: dict  # as from_dict takes it

    def made(self):
        from pysmezo.methods import from_dict

        return from_dict(self.method)

    @property
    def eps(self) -> float:
        return EPS_OF_CURVATURE if self.made().parts()["plan"] == "curved" else EPS

    @property
    def index_set(self) -> bool:
        return "index_set" in self.made().parts()

    @property
    def rank(self) -> int:
        """0: a direction that is not of low rank."""
        return self.made().parts().get("rank", 0)

    @property
    def warm_up(self) -> int:
        """Steps before one costs what every later one does: the first makes what is kept, the second applies the first
        record, a window fills."""
        return 2 + self.made().window


def label_of(method: dict) -> str:
    from pysmezo.methods import from_dict

    made = from_dict(method)
    words = [made.name]
    if getattr(made, "fraction", 0):
        words.append(f"{100 * made.fraction:g} %")
    if getattr(made, "rank", 0):
        words.append(f"rank {made.rank}")
    if made.window:
        words.append(f"window {made.window}")
    if made.queries > 1:
        words.append(f"{made.queries} queries")
    return ", ".join(words)


def row_of(**method) -> Row:
    return Row(label_of(method), method)


def all_rows() -> list[Row]:
    """In the order of the table of methods, a method's variants after it."""
    from pysmezo.methods import METHODS

    found = [*({"kind": kind} for kind in METHODS), *VARIANTS]
    return [row_of(**m) for m in sorted(found, key=lambda m: list(METHODS).index(m["kind"]))]
