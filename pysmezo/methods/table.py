"""The rows by name. A new method is a class in a file of its own and an entry here."""

from __future__ import annotations

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

# What a field of each type is in JSON.
IN_JSON = {
    "str": (str, "a text"),
    "int": (int, "an integer"),
    "float": ((int, float), "a number"),
    "bool": (bool, "true or false"),
}


def from_dict(d: dict) -> Method:
    """The method that `to_dict` wrote. ArgumentError: unknown kind (lists the known ones) or field, or a value of another type."""
    d = dict(d)
    kind = d.pop("kind", None)
    if not isinstance(kind, str) or kind not in METHODS:
        raise ArgumentError(f"[method] {kind!r}, expected one of {', '.join(METHODS)}")
    known = {f.name: f.type.split(" | ") for f in fields(METHODS[kind])}
    for key, value in d.items():
        if key not in known:
            raise ArgumentError(f"[method] {kind} has no field {key!r}, expected some of {', '.join(sorted(known))}")
        types, expected = IN_JSON[known[key][0]]
        if value is None and "None" in known[key]:
            continue
        if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
            raise ArgumentError(f"[method] {key} {value!r}, expected {expected}")
    return METHODS[kind](**d)
