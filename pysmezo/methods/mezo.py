"""Dense directions: MeZO and what differs from it by its rule or its query plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Method


@dataclass(frozen=True, kw_only=True)
class MeZO(Method):
    """Dense zeroth-order SGD (Malladi et al. 2023, arXiv 2305.17333, algorithm 1).

    trains: "linear" (the linear weights of the decoder blocks), "all" (embeddings, head, norms and biases too: MeZO's own choice), or a
    glob pattern over parameter names such as "model.layers.*.self_attn.?_proj.weight".
    """

    trains: str = "linear"
    name: ClassVar[str] = "mezo"


# For a run that only looks at its base: next to nothing of it is copied.
LEAST = MeZO(trains="model.norm.weight")


@dataclass(frozen=True, kw_only=True)
class MeZOMomentum(MeZO):
    """MeZO with momentum (appendix B.2). Its paper averages (the default here), torch's SGD adds up (damped=False)."""

    rule: str = "momentum"
    name: ClassVar[str] = "mezo-momentum"
    WORDS: ClassVar[dict] = {"rule": ("momentum",)}


@dataclass(frozen=True, kw_only=True)
class MeZOAdam(MeZO):
    """MeZO with Adam (appendix B.2). Kept moments are eight bytes for each element that trains; window=h rebuilds them instead."""

    rule: str = "adam"
    name: ClassVar[str] = "mezo-adam"
    WORDS: ClassVar[dict] = {"rule": ("adam",)}


@dataclass(frozen=True, kw_only=True)
class OneSided(MeZO):
    """g_q = (l(w + eps z_q) - l(w)) / eps, one centre for all queries: Q + 1 branches instead of 2 Q, and a bias of order eps."""

    plan: str = "one-sided"
    name: ClassVar[str] = "one-sided"
    WORDS: ClassVar[dict] = {"plan": ("one-sided",)}


@dataclass(frozen=True, kw_only=True)
class ZOSign(MeZO):
    """Steps of one size (ZO-signSGD, Liu et al. 2019; ZO-SGD-Sign of ZO-Bench, arXiv 2402.11592).

    of: "estimate" takes the sign of every element of the estimate, as signSGD does; "scalar" takes the sign of the scalar and keeps z, as
    ZO-Bench's code does. With one query of rademacher noise they are the same.
    """

    rule: str = "sign"
    of: str = "estimate"
    name: ClassVar[str] = "zo-sign"
    WORDS: ClassVar[dict] = {"of": ("estimate", "scalar"), "rule": ("sign",)}

    def parts(self) -> dict:
        parts = super().parts()
        return parts | ({"estimator": "sign", "rule": "sgd"} if parts.pop("of") == "scalar" else {})

    @classmethod
    def fields_of(cls, parts: dict) -> dict:
        scalar = parts.get("estimator") == "sign"
        return super().fields_of(parts) | {"rule": "sign", "of": "scalar" if scalar else "estimate"}


@dataclass(frozen=True, kw_only=True)
class FZOO(MeZO):
    """One-sided queries whose scalars are divided by the standard deviation of their losses (Dang et al. 2025, arXiv 2506.09034).

    The paper divides by eps too (over_eps=True), its released code does not, and its learning rates are the code's. The deviation is that
    of the code, 1 / queries under the root; with 1 / (queries - 1) it is this at lr * sqrt((queries - 1) / queries). Scalars have a size of
    their own, whatever the loss: a learning rate does not carry over from MeZO. Losses that are all equal give none, and the step is skipped;
    losses that differ by rounding alone give a step as large as any.
    """

    noise: str = "rademacher"
    queries: int = 8
    plan: str = "one-sided"
    over_eps: bool = False
    name: ClassVar[str] = "fzoo"
    PARTS: ClassVar[dict] = {"estimator": "deviation"}
    WORDS: ClassVar[dict] = {"plan": ("one-sided",)}


@dataclass(frozen=True, kw_only=True)
class HiZOO(MeZO):
    """Directions scaled by a diagonal curvature (Zhao et al. 2024, arXiv 2402.15173, algorithm 1): w, w + eps z / sqrt(h) and
    w - eps z / sqrt(h), then h <- (1 - s) h + s |l+ + l- - 2 l0| / (2 eps^2) h z^2, and the step with the new h.

    h exists for what trains only, four bytes each. A second difference of bf16 products is rounding below eps 0.01 (refused; or dtype fp32).
    smoothing: s; the released code's 1e-8 hardly moves h in a thousand steps.
    """

    rule: str = "hizoo"
    smoothing: float = 1e-6
    name: ClassVar[str] = "hizoo"
    PARTS: ClassVar[dict] = {"plan": "curved"}
    WORDS: ClassVar[dict] = {"rule": ("hizoo",), "plan": ("two-sided",)}

    @classmethod
    def fields_of(cls, parts: dict) -> dict:
        return super().fields_of(parts) | {"plan": "two-sided"}


@dataclass(frozen=True, kw_only=True)
class LeZO(MeZO):
    """Of the decoder's layers a random share sits each step out; what is not in a layer takes part always (Wang et al. 2024, arXiv
    2410.09823).

    drop: that share of the layers, rounded to a whole number of them, halves up; at least one takes part. Layers that rest are neither
    perturbed nor updated, cost a bare forward, and their moments neither decay nor move. Something of every layer must train.
    """

    drop: float = 0.75
    name: ClassVar[str] = "lezo"
