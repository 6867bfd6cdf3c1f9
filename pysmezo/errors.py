"""The error types, as raised by the core. Message grammar: `[where] what was found, what was expected, likely cause`."""

from ._core import ArgumentError, BudgetError, FormatError, IoError, PysmezoError

__all__ = ["ArgumentError", "BudgetError", "FormatError", "IoError", "PysmezoError"]
