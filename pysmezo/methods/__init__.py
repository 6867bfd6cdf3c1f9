"""Methods as values: what is selected, how it is perturbed, how the step uses the scalars. Frozen dataclasses, one a row of METHODS."""

from __future__ import annotations

from .adamezo import AdaMeZO
from .base import Method
from .described import described_by_delta, described_by_journal
from .index_sets import MaZO, RandomRows, Sensitive
from .low_rank import LOZO, LOZOMomentum, SubZero, TeZO, TeZOAdam, TeZOAdamC, TeZOMomentum
from .masked import LargestMask, RandomMask, SparseMeZO
from .mezo import FZOO, HiZOO, LeZO, MeZO, MeZOAdam, MeZOMomentum, OneSided, ZOSign
from .table import METHODS, from_dict

__all__ = [
    "FZOO", "LOZO", "METHODS", "AdaMeZO", "HiZOO", "LOZOMomentum", "LargestMask", "LeZO", "MaZO", "MeZO", "MeZOAdam", "MeZOMomentum", "Method",
    "OneSided", "RandomMask", "RandomRows", "Sensitive", "SparseMeZO", "SubZero", "TeZO", "TeZOAdam", "TeZOAdamC", "TeZOMomentum", "ZOSign",
    "described_by_delta", "described_by_journal", "from_dict",
]  # fmt: skip
