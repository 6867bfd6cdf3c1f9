"""The rows by name. A new method is a class in a file of its own and an entry here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from ..errors import ArgumentError
from .adamezo import AdaMeZO
from .base import Method
from .index_sets import MaZO, RandomRows, Sensitive
from .low_rank import LOZO, LOZOMomentum, SubZero, TeZO, TeZOAdam, TeZOAdamC, TeZOMomentum
from .masked import LargestMask, RandomMask, SparseMeZO
from .mezo import FZOO, HiZOO, LeZO, MeZO, MeZOAdam, MeZOMomentum, OneSided, ZOSign

ROWS = (
    MeZO, RandomMask, LargestMask, SparseMeZO, Sensitive, MaZO, RandomRows, LeZO, OneSided, FZOO, ZOSign, HiZOO, MeZOMomentum, MeZOAdam, AdaMeZO,
    LOZO, LOZOMomentum, SubZero, TeZO, TeZOMomentum, TeZOAdam, TeZOAdamC,
)  # fmt: skip
METHODS: dict[str, type[Method]] = {row.name: row for row in ROWS}


def from_dict(d: dict) -> Method:
    """The method that `to_dict` wrote. ArgumentError: unknown kind (lists the known ones) or field, or what the method itself refuses."""
    if not isinstance(d, Mapping):
        raise ArgumentError(f"[method] {d!r}, expected a dictionary with the method's name under 'kind'")
    d = dict(d)
    kind = d.pop("kind", None)
    if not isinstance(kind, str) or kind not in METHODS:
        raise ArgumentError(f"[method] {kind!r}, expected one of {', '.join(METHODS)}")
    known = {f.name for f in fields(METHODS[kind])}
    for key in d:
        if key not in known:
            raise ArgumentError(f"[method] {kind} has no field {key!r}, expected some of {', '.join(sorted(known))}")
    return METHODS[kind](**d)
