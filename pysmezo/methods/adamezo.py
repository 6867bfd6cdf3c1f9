"""AdaMeZO: Adam without memory. The worked example of HACKING.md, "A method, from a paper to the table"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .mezo import MeZO


@dataclass(frozen=True, kw_only=True)
class AdaMeZO(MeZO):
    """MeZO with Adam's moments rebuilt at every step from the last `window` records (arXiv 2605.00650, algorithm 1): no memory beside the
    weights, `window` passes of noise a step.

    The betas are its paper's; bias is taken out over the window. Its released code multiplies the step by 100 and has 1e-5 for adam_eps.
    """

    rule: str = "adam"
    window: int = 10
    beta1: float = 0.7
    beta2: float = 0.9
    name: ClassVar[str] = "adamezo"
