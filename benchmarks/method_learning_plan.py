"""How long what is left of benchmarks.method_learning takes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

# Seconds on two quiet cores with AVX-512-bf16: a step of two forwards takes 0.51 s for 510 tokens (benchmarks/LOG.md);
# the demo's batches have 413 on average, TREC's 301. LOZO, FZOO and Sensitive take as long a forward as MeZO, within 10
# %.
FORWARD_S = {"rt": 0.2, "trec": 0.15}
LOOK_S = {"rt": 7.0, "trec": 2.8}
TEST_S = {"rt": 27.0, "trec": 4.7}
OPEN_S, COMMIT_S, PREPARE_S = 6.0, 0.025, 300.0
PROBE_FORWARDS = 416  # four eps with 16 pairs each and the first, 64 curvatures of three, 32 pairs
LRS = 4  # values tried, about


@dataclass(frozen=True)
class Piece:
    """A row to be: `make(work)` makes it. forwards: of a run."""

    group: str
    key: str
    make: Callable
    forwards: int = 0


def forward_s(work, task: str, name: str) -> float:
    """Seconds of a forward, by the row's own runs where there are some."""
    own = [r["forward_s"] for r in work.done.values() if r.get("forward_s") and (r["task"], r["name"]) == (task, name)]
    return statistics.median(own) if own else FORWARD_S[task]


def seconds(
    piece: Piece, work, taken_over: frozenset[str] = frozenset(), shared: frozenset[str] = frozenset()
) -> float:
    """taken_over: rows whose demo runs are committed again. shared: rows whose diagnostics are another row's."""
    kind, task, *rest = piece.key.split("/")
    if kind == "base":
        return PREPARE_S
    name, again = rest[0], task == "rt" and rest[0] in taken_over and kind != "more"
    each = forward_s(work, task, name)
    if kind == "diagnose":
        return OPEN_S + (0.0 if name in shared and task == "rt" else PROBE_FORWARDS * each)
    if kind == "lr":
        return 0.0 if again else LRS * (OPEN_S + work.sizes.tune * each + LOOK_S[task])
    looks = piece.forwards // (work.sizes.other_look if kind == "other" else work.sizes.look)
    if again:  # half of the looks are there
        return OPEN_S + piece.forwards / 2 * COMMIT_S + (looks / 2 + 1) * LOOK_S[task]
    test = 0.0 if kind == "other" else TEST_S[task]
    return OPEN_S + piece.forwards * each + looks * LOOK_S[task] + test


def plan(pieces: list[Piece], work, groups: dict[str, str]) -> str:
    from pysmezo.methods import METHODS

    from . import common, learning
    from .method_learning_rows import OVER_NF4, direction

    rows = {r["piece"] for r in common.rows(learning.FILE)}
    journals = common.cache_dir("runs", "final", "rt")
    taken_over = frozenset(
        n for n in learning.METHODS if f"lr/rt/{n}" in rows and (journals / n).is_dir() and not work.trial
    )
    seen, shared = set(), set()
    for name, row in METHODS.items():
        what = direction(row(), "nf4" if name in OVER_NF4 else "bf16")
        shared |= {name} if what in seen else set()
        seen.add(what)
    out, total = [], 0.0
    for group, words in groups.items():
        mine = [p for p in pieces if p.group == group]
        left = [p for p in mine if p.key not in work.done]
        minutes = sum(seconds(p, work, taken_over, frozenset(shared)) for p in left) / 60
        total += minutes
        out.append(f"{minutes:6.0f} min  {len(left):3} of {len(mine):3} pieces left: {words}")
    out.append(f"{total:6.0f} min  in all, on two cores with nothing else running")
    if taken_over:
        out.append(f"committed again, not run, on the demo task: {', '.join(sorted(taken_over))}")
    return "\n".join(out)
