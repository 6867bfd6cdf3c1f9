"""What every method has: the fields they share, and how a method becomes the parts that the core combines."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import ClassVar

from .. import _core
from ..errors import ArgumentError
from .values import check_read, plain

# Words of fields: shared by all methods, checked before a model is opened.
CHOICES = {
    "noise": ("gaussian", "gaussian8", "rademacher"),
    "plan": ("two-sided", "one-sided"),
    "rule": ("sgd", "momentum", "adam", "sign"),
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """Fields every method has. A method is selection x direction x query plan x scalars x rule.

    Fields are given by name, but for the one that says how much trains (sparsity, rank, index or fraction), which may come first.
    ArgumentError, when a method is made: a value of another type or out of range, a word that is none, a field that the rule does not read,
    or parts that make no sense together. What does not suit a model, when that is opened.

    noise: kind of direction, all with mean 0 and variance 1. gaussian8 is a Gaussian discretised to 256 values, one random byte an element.
    queries: directions a step, averaged (n-SPSA, MeZO appendix A). plan: two-sided asks w + eps z and w - eps z of each; one-sided asks w
    once and w + eps z of each. All branches of a step, at most 128, share one visit of the weights.
    rule: what the step does with the estimate e, the mean of g_q z_q: sgd; momentum (m <- beta1 m + (1 - beta1) e; damped=False: + e); adam
    (bias taken out; corrected=False: not); sign (of e, elementwise: signSGD). Moments exist for what trains only, four bytes each.
    window: moments are not kept but rebuilt from the last so many records at every step (MeZO, appendix B.2; AdaMeZO, arXiv 2605.00650):
    no memory, and as many passes of noise. At most 64, with momentum or adam, not with low rank.
    weight_decay: lambda of w <- (1 - lr * lambda) w, of what trains in the step and before its rule, Adam's too, on matrices only (norms and
    biases are left alone, as in MeZO's code).
    A step whose losses are not finite is skipped: nothing moves, no moment and no window counts it; factors and layers are drawn by the
    step's number all the same.
    """

    noise: str = "gaussian8"
    queries: int = 1
    plan: str = "two-sided"
    rule: str = "sgd"
    beta1: float = 0.9
    beta2: float = 0.999
    adam_eps: float = 1e-8
    damped: bool = True
    corrected: bool = True
    window: int = 0
    weight_decay: float = 0.0

    name: ClassVar[str] = ""
    # Parts of the row that are no field, by the core's names.
    PARTS: ClassVar[dict] = {}
    # Words that this row's fields take instead of CHOICES.
    WORDS: ClassVar[dict] = {}

    def __post_init__(self):
        where = type(self).__name__
        for f in fields(self):
            object.__setattr__(self, f.name, plain(where, f, getattr(self, f.name)))
        choices = CHOICES | self.WORDS
        for name, words in choices.items():
            value = getattr(self, name)
            if value not in words:
                raise ArgumentError(f"[{where}] {name} {value!r}, expected one of {', '.join(words)}")
        check_read(where, fields(self), self, choices["rule"])
        _core.check_method(self.parts())

    def to_dict(self) -> dict:
        """Plain JSON form with the method's name under "kind"; `from_dict` reads it back."""
        return {"kind": self.name, **asdict(self)}

    def parts(self) -> dict:
        """What the core combines: the fields, and what of the row is none."""
        return {k: v for k, v in self.to_dict().items() if v is not None} | self.PARTS

    @property
    def drawn_from_seed(self) -> bool:
        """Does the run's seed say which elements, or which directions, train? A delta means nothing without it then."""
        parts = self.parts()
        drawn = parts.get("mask") == "random" or parts.get("index_set") in ("random", "whole-rows")
        return drawn or parts.get("only_reads", False)

    @property
    def n_branches(self) -> int:
        """Perturbed models that a step asks."""
        return {"two-sided": 2 * self.queries, "one-sided": self.queries + 1, "curved": 3}[self.parts()["plan"]]

    @property
    def most_steps(self) -> int | None:
        """Steps after which a run can go no further; None: there is no end to them."""
        return None

    @classmethod
    def fields_of(cls, parts: dict) -> dict:
        """The row's fields from the parts that a journal or a delta names."""
        known = {f.name for f in fields(cls)}
        return {key: value for key, value in parts.items() if key in known}
