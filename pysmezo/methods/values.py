"""What fields of methods may hold: values of their type, and none that nothing reads."""

from __future__ import annotations

import os
from numbers import Integral, Real

from ..errors import ArgumentError

# By a field's annotation: what it takes, numpy's numbers included; what it is then; in words.
TYPES = {
    "str": (str, str, "a text"),
    "int": (Integral, int, "an integer"),
    "float": (Real, float, "a number"),
    "bool": (bool, bool, "true or false"),
}
LARGEST = 1 << 30  # of whole numbers, either way: what no core's counter minds
# Fields that these rules read and no others; a rule that reads no moments has no use for them.
RULES_THAT_READ = {
    "beta1": ("momentum", "adam", "adam-c"),
    "beta2": ("adam", "adam-c"),
    "adam_eps": ("adam", "adam-c"),
    "damped": ("momentum",),
    "corrected": ("adam", "adam-c"),
}


def plain(where: str, field, value):
    """`value` as Python's own type of a dataclass field, a path as text. ArgumentError: it is of another type."""
    kinds = field.type.split(" | ")
    if value is None and "None" in kinds:
        return None
    if field.metadata.get("path") and isinstance(value, os.PathLike):
        value = os.fspath(value)
    takes, make, words = TYPES[kinds[0]]
    if not isinstance(value, takes) or (isinstance(value, bool) and make is not bool):
        raise ArgumentError(f"[{where}] {field.name} {value!r}, expected {words}")
    if make is int and abs(value) > LARGEST:
        raise ArgumentError(f"[{where}] {field.name} {value}, expected at most {LARGEST}")
    return make(value)


def check_read(where: str, fields, method, own_rules) -> None:
    """ArgumentError: a field was set that the method's rule does not read. own_rules: those that the method takes at all."""
    for f in fields:
        value, rules = getattr(method, f.name), RULES_THAT_READ.get(f.name)
        if rules and value != f.default and method.rule not in rules:
            readers = [r for r in rules if r in own_rules]
            raise ArgumentError(
                f"[{where}] {f.name} {value} with rule {method.rule}, which does not read it: expected it only with"
                f" {' or '.join(readers or rules)}"
            )
