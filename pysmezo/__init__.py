"""pysmezo: fine-tunes large language models with forward passes only, in little more memory than the weights."""

from importlib import import_module

__version__ = "0.1.0"
# Where the public names are; each is imported when it is first asked for, so that the command line can take signals
# before numpy is loaded.
_HOMES = {
    "Runtime": "runtime",
    "StepResult": "results",
    "Trainer": "trainer",
    **dict.fromkeys(("MeZO", "SparseMeZO", "RandomMask", "LargestMask", "Sensitive", "MaZO", "RandomRows"), "methods"),
    **dict.fromkeys(("OneSided", "FZOO", "ZOSign", "HiZOO", "LeZO", "LOZO", "SubZero", "TeZO", "AdaMeZO"), "methods"),
    **dict.fromkeys(("PysmezoError", "ArgumentError", "BudgetError", "FormatError", "IoError"), "errors"),
}
__all__ = list(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__():
    return sorted([*globals(), *__all__])
