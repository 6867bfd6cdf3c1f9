"""AdaMeZO: Adam without memory. The worked example of HACKING.md, "A method, from a paper to the table"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import ArgumentError
from .mezo import MeZOAdam


@dataclass(frozen=True, kw_only=True)
class AdaMeZO(MeZOAdam):
    """MeZO with Adam's moments rebuilt at every step from the last `window` records (arXiv 2605.00650, algorithm 1): no memory beside the
    weights, `window` passes of noise a step.

    The betas are its paper's. Taking the bias out over the window is ours. Its released code sums beta1^k g and beta2^k g^2 without 1 - beta,
    has 1e-5 for adam_eps and multiplies by 100, which at a full window of 10 is this at about 127 times lr, and takes plain SGD until the
    window is full.
    """

    window: int = 10
    beta1: float = 0.7
    beta2: float = 0.9
    name: ClassVar[str] = "adamezo"

    def __post_init__(self):
        super().__post_init__()
        if self.window < 1:
            raise ArgumentError(
                f"[AdaMeZO] window {self.window}, expected at least 1 record: without one it is MeZOAdam"
            )
