"""pysmezo: fine-tunes large language models with forward passes only, in little more memory than the weights."""

from .errors import ArgumentError, BudgetError, FormatError, IoError, PysmezoError
from .methods import LargestMask, MeZO, RandomMask, Sensitive, SparseMeZO
from .results import StepResult
from .runtime import Runtime
from .trainer import Trainer

__version__ = "0.1.0"
__all__ = [
    "Runtime",
    "StepResult",
    "Trainer",
    "MeZO",
    "SparseMeZO",
    "RandomMask",
    "LargestMask",
    "Sensitive",
    "PysmezoError",
    "ArgumentError",
    "BudgetError",
    "FormatError",
    "IoError",
]
