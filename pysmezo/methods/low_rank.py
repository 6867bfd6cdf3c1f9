"""Low-rank directions: side products of a weight that is not touched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from .base import Method


@dataclass(frozen=True, kw_only=True)
class _Refreshed(Method):
    """only_reads: the base stays as it is, quantized or not, and what each epoch of factors has added up piles up beside it, to a rank of
    `rank_cap` in all: refresh * (rank_cap // rank) steps, after which a step is refused. rank + rank_cap is at most the smaller side of each
    matrix, the rule is sgd, and there is no weight_decay. Else weights are updated at every step."""

    only_reads: bool = False
    rank_cap: int = 0

    @property
    def most_steps(self) -> int | None:
        return self.refresh * (self.rank_cap // self.rank) if self.only_reads else None


@dataclass(frozen=True, kw_only=True)
class LOZO(_Refreshed):
    """Z = U V^T / sqrt(rank) with U of a step and V of `refresh` steps (Chen et al. 2024, arXiv 2410.07698, algorithm 1).

    E||Z||^2 = m n, so lr and eps mean what they mean for MeZO: the paper's form, which perturbs with U V^T and updates with U V^T / rank, is
    this at eps * sqrt(rank); its released code leaves the 1 / rank out, which is this at lr * rank. rule="momentum" (LOZO-M, section 3.3)
    averages U's side, [m, rank] a matrix, from 0 (the released code begins at g U), and turns it when V is drawn anew. Given V the estimate is
    G V V^T / rank of the gradient G. Matrices of the blocks alone train; the paper moves norms and biases too, by dense noise. only_reads: the base is only read, quantized or not, and what
    each epoch adds piles up beside it, to a rank of rank_cap: refresh * (rank_cap // rank) steps in all.
    """

    rank: int = field(default=2, kw_only=False)
    refresh: int = 50
    trains: str = "linear"
    name: ClassVar[str] = "lozo"
    PARTS: ClassVar[dict] = {"low_rank": "uv"}
    WORDS: ClassVar[dict] = {"rule": ("sgd", "momentum")}


@dataclass(frozen=True, kw_only=True)
class LOZOMomentum(LOZO):
    """LOZO with momentum: LOZO(rule="momentum")."""

    rule: str = "momentum"
    name: ClassVar[str] = "lozo-m"
    WORDS: ClassVar[dict] = {"rule": ("momentum",)}


@dataclass(frozen=True, kw_only=True)
class SubZero(_Refreshed):
    """Z = sqrt(m n) / rank U Z' V^T with orthonormal U, V of `refresh` steps and Z' [rank, rank] of a step (Yu et al. 2024, arXiv
    2410.08989, equations 5 and 6).

    Given U and V the estimate is m n / rank^2 times the gradient's projection on their spans; over their law it is the gradient. Matrices of
    the blocks alone train; the paper moves norms and biases too, by dense noise. The factors
    are kept between steps, 2 rank (m + n) bytes a matrix, and made anew in the time of some steps. only_reads, rank_cap: as in LOZO.
    """

    rank: int = field(default=16, kw_only=False)
    refresh: int = 1000
    trains: str = "linear"
    name: ClassVar[str] = "subzero"
    PARTS: ClassVar[dict] = {"low_rank": "uzv"}
    WORDS: ClassVar[dict] = {"rule": ("sgd",)}


@dataclass(frozen=True, kw_only=True)
class TeZO(Method):
    """Z = U diag(tau) V^T / sqrt(rank) with U, V of the run and tau [rank] of a step (Sun et al. 2025, arXiv 2501.19057).

    rule: sgd, momentum (TeZO-m) and adam-c (Adam on tau, this library's own) search rank fixed directions of each matrix for the whole run:
    all that training changes is U diag(c) V^T, `rank` numbers a matrix beside a base that is only read, quantized or not. adam divides by the
    root of a separable second moment (equation 8, whose cross terms are left out, as there), changes every weight, and needs working copies.
    corrected: False leaves the bias of the averages in, as equation 8 has no correction; TeZOAdamC takes it out. adam_eps stands inside adam's
    root, and outside adam-c's. The paper has no 1 / sqrt(rank): its form is this at lr * rank and eps * sqrt(rank). Given the factors the estimate
    is sum_s (u_s^T G v_s) u_s v_s^T / rank of the gradient G. Linear weights of the blocks alone train: norms and biases, which the paper may
    move by dense noise, do not. Its rank per layer comes from spectra; here it is a number.
    """

    rank: int = field(default=16, kw_only=False)
    rule: str = "sgd"
    beta2: float = 0.99
    corrected: bool = False
    trains: str = "linear"
    name: ClassVar[str] = "tezo"
    PARTS: ClassVar[dict] = {"low_rank": "utv"}
    WORDS: ClassVar[dict] = {"rule": ("sgd", "momentum", "adam", "adam-c")}

    def parts(self) -> dict:
        parts = super().parts()
        return parts | {"only_reads": self.rule != "adam", "rule": self.rule.removesuffix("-c")}

    @classmethod
    def fields_of(cls, parts: dict) -> dict:
        found = super().fields_of(parts)
        return found | ({"rule": "adam-c"} if found["rule"] == "adam" and parts["only_reads"] else {})


@dataclass(frozen=True, kw_only=True)
class TeZOMomentum(TeZO):
    """TeZO(rule="momentum")."""

    rule: str = "momentum"
    name: ClassVar[str] = "tezo-m"
    WORDS: ClassVar[dict] = {"rule": ("momentum",)}


@dataclass(frozen=True, kw_only=True)
class TeZOAdam(TeZO):
    """TeZO(rule="adam")."""

    rule: str = "adam"
    name: ClassVar[str] = "tezo-adam"
    WORDS: ClassVar[dict] = {"rule": ("adam",)}


@dataclass(frozen=True, kw_only=True)
class TeZOAdamC(TeZO):
    """TeZO(rule="adam-c", corrected=True)."""

    rule: str = "adam-c"
    corrected: bool = True
    name: ClassVar[str] = "tezo-adam-c"
    WORDS: ClassVar[dict] = {"rule": ("adam-c",)}
