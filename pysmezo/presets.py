"""lr and eps that papers and their code publish, one row a setting: for reference, never a default of anything here.

They do not transfer: they depend on the model, on what trains and on how a direction is scaled (`note` says where that
differs from ours). Facts only; a method of which nothing was found has no row.
"""

from __future__ import annotations

from dataclasses import dataclass

# Where a row was read: the last three are leads to check before they are cited.
PAPER, CODE, EITHER, REVIEWS, PORT = "paper", "code", "paper or code", "public reviews", "another's port"


@dataclass(frozen=True)
class Preset:
    """method: our name where we have one. lrs: the grid that was searched, or the one value. eps None: not found."""

    method: str
    setting: str
    lrs: tuple[float, ...]
    eps: float | None
    source: str
    read_in: str
    note: str = ""


_MEZO, _TEZO, _BENCH = "arXiv 2305.17333", "arXiv 2501.19057", "ZO-Bench bf210fa"
_Z_OF_TEZO = "its Z is sqrt(r) times ours: our lr is r times its, our eps sqrt(r) times"
_Z_OF_LOZO = (
    "its Z is sqrt(r) times ours, so is our eps its; our lr is the paper's, r times its code's, which omits a 1/r"
)
PRESETS = (
    Preset("mezo", "OPT, all weights, batch 16, 20,000 steps", (1e-6, 1e-7), 1e-3, f"{_MEZO} table 16", PAPER,
           "its script's default, 1e-5, diverges"),
    Preset("mezo", "the same, SQuAD and DROP", (1e-6, 5e-7, 1e-7), 1e-3, f"{_MEZO} table 16", PAPER),
    Preset("mezo", "RoBERTa-large, batch 64, 100,000 steps", (1e-7, 1e-6, 1e-5), 1e-3, f"{_MEZO} table 15", PAPER),
    Preset("mezo", "OPT, LoRA of rank 8, batch 16", (1e-4, 5e-5), 1e-2, f"{_MEZO} table 16", PAPER),
    Preset("mezo", "OPT, 5 prefix tokens, batch 16", (1e-2, 1e-3), 1e-1, f"{_MEZO} table 16", PAPER),
    Preset("mezo", "OPT-1.3B, SST-2, batch 16, 20,000 steps", (1e-4, 1e-5, 1e-6, 1e-7, 1e-8), 1e-3, _BENCH, CODE,
           "eps also 1e-4 and 1e-5"),
    Preset("mezo-momentum", "the same, momentum 0.9", (1e-5, 1e-6, 1e-7, 1e-8), None, _BENCH, CODE),
    Preset("mezo-adam", "the same, Adam", (1e-4, 1e-5, 1e-6, 1e-7, 1e-8), 1e-3, _BENCH, CODE, "eps also 1e-4 and 1e-5"),
    Preset("sparse-mezo", "LLaMA-7b, sparsity 0.5 to 0.8", (1e-6,), 1e-3, "arXiv 2402.15751 table 7", PORT),
    Preset("random-mask", "OPT-1.3B, SST-2, sparsity 0.1 to 0.9", (1e-6,), 1e-3, _BENCH, CODE,
           "its masks freeze 54 to 82 %, not what they name"),
    Preset("sensitive", "OPT-13B, the grid of the full ZO beside it", (1e-7, 2e-7, 5e-7, 1e-6), None, "arXiv 2406.02913",
           REVIEWS, "its own lr was tuned apart and is not told"),
    Preset("tezo", "OPT-13B, LLaMA-7B and others, SGD kinds", (1e-4, 1e-5, 1e-6, 1e-7), None, _TEZO, REVIEWS, _Z_OF_TEZO),
    Preset("tezo-adam", "the same, Adam", (1e-4, 3e-5, 1e-5, 3e-6), None, _TEZO, REVIEWS),
    Preset("subzero", "OPT-13B, rank 24 to 128", (1e-7, 2e-7, 5e-7, 1e-6), 1e-3, "arXiv 2410.08989", EITHER),
    Preset("subzero+", "rank 16 and 128, Adam, 100 forwards", (1e-3, 5e-3, 1e-2), 1e-3, "arXiv 2608.15665", PAPER),
    Preset("lozo", "rank 1 and 2", (1e-6, 1e-7), 1e-3, "arXiv 2410.07698", EITHER, _Z_OF_LOZO),
    Preset("lezo", "as MeZO", (1e-6, 1e-7), 1e-3, "arXiv 2410.09823", PAPER),
    Preset("hizoo", "Hessian smoothing 1e-8", (1e-6,), 1e-3, "arXiv 2402.15173", EITHER),
    Preset("mezo-svrg", "mini-batch lr, full batch every 2 steps", (1e-6,), 1e-3, "arXiv 2404.08080", EITHER),
    Preset("dizo", "a projection every 50 to 400 steps", (1e-6,), None, "arXiv 2502.03304", EITHER),
    Preset("fzoo", "OPT-13B, 8 one-sided Rademacher directions", (5e-5,), 1e-4, "arXiv 2506.09034", EITHER,
           "its step is divided by the losses' standard deviation; its code omits 1/eps"),
    Preset("qzo", "scales of a quantized model, g cut at 100", (1e-7,), 1e-3, "arXiv 2505.13430", PAPER),
    Preset("conmezo", "batch 8", (1e-7,), None, "arXiv 2511.02757", EITHER),
    Preset("adazeta", "tensor-train adapters of rank 5", (1e-4,), 1e-3, "arXiv 2406.18060", EITHER),
    Preset("dpzero", "private, batch 8", (1e-7,), None, "DPZero 485f236", CODE),
    Preset("zo-muon", "rank 64, 4 one-sided queries", (1e-2,), None, "arXiv 2602.17155", EITHER),
    Preset("aim-zo", "OPT-13B, 15 one-sided queries", (1e-3,), 8e-5, "AIM-ZO, September 2026", PAPER),
)  # fmt: skip


def lines() -> list[str]:
    """The table as text, with a heading."""
    head = ("method", "lr", "eps", "setting", "source", "read in")
    rows = [
        (p.method, ", ".join(f"{lr:g}" for lr in p.lrs), "-" if p.eps is None else f"{p.eps:g}", p.setting, p.source,
         p.read_in + (f"; {p.note}" if p.note else ""))
        for p in PRESETS
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)]
