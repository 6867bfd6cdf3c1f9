"""`python -m benchmarks.learning --rows --demo DIR [--minutes N]`: do the rows of METHODS learn faster than MeZO at
equal forwards?

The protocol, fixed before the first run. SmolLM2-135M, batch 16, fp32 trained values, operand "nearest", constant lr.

  Forwards, not steps, are what is equal: a row with S branches a step takes 1200 / S steps, as many as 600 of MeZO's.
  Dev is looked at every 100 forwards (where the last whole step fits below), test once, after the last step.
  Named rows: SparseMeZO(sparsity=0.75); Sensitive(fraction=0.001) over a base in NF4, its index calibrated on
  WikiText-2 and its elements starting from their original values; one low-rank and one multi-query row, chosen here:
    LOZO as the low-rank one. Its directions change at every step and its subspace every 50, so a run searches the whole
      space with MeZO's own lr and eps, and any difference is the rank's. TeZO's 16 fixed directions a matrix would be a
      comparison of subspaces instead.
    FZOO with 8 queries as the multi-query one. One centre serves all of them: 9 forwards for 8 directions, where 8
      two-sided ones need 16, so that theory gives it 1.78 times MeZO at equal forwards; and it is what is published (3
      times fewer forwards on average). OneSided(queries=8) is the same without the division by the losses' deviation,
      and is among the other rows with its default of one query.
  Controls: MeZO (dense), RandomMask(0.75).

  1  diagnostics of every row of METHODS: eps by autotune.find_eps, tr(H_S) by its 32 to 128 probes, g along 32, what
     survives operand rounding, and the speed-up per forward that g_S^2 / tr(H_S) predicts.
  2  named rows and controls: lr on dev, a factor 3 apart around what find-lr suggests for the row, 400 forwards, one
     seed of its own, more values until the best is not at an end; then seed 0.
  3  the other rows, seed 0, at the lr that find-lr suggests, not tuned, 600 forwards: enough to see the speed-up of 2
     that is aimed at, beside MeZO's seed 0 at as many forwards. They are shown, not compared.
  4  seeds 1 to 4 of the named rows and controls: the same batches for all rows of a seed.
  5  TREC: diagnostics, lr and five seeds of the named rows and controls.
  6  seeds 5 to 9 of MeZO and of Sensitive over NF4, on both tasks. Added when 1 to 5 were known: five seeds told their
     difference in accuracy no closer than within 1.9 points on the demo task and 8.1 on TREC. Told apart from the
     others, as the difference of all ten seeds; the targets are those of five.

  MeZO, RandomMask and SparseMeZO on the demo task are the runs of `benchmarks.learning` stages 1 and 2, where their
  journals are in the cache: lr found by the same rule, the same seeds, batches and number of forwards; how they ended
  was known when this was written. They are committed again, record by record, to look at dev twice as often; without
  the journals they are run.

  Speed-up (benchmarks/speedup.py): forwards that MeZO needs / forwards that the row needs until the mean of three
  consecutive dev losses stays below MeZO's last such mean, on curves averaged over the seeds, with the 95 % interval of
  the exact bootstrap over paired seeds. Aim: 2 (published for S-MeZO: 3.5 in steps). Accuracy: paired differences with
  t intervals; Sensitive over NF4 less MeZO is to stay above -0.02.

Every finished piece is a row of results/method_learning.jsonl and is not run again; what is not finished goes on from
its journal in the cache. `--plan` prints what is left and how long it takes, `--table` the results, `--json` one
object, `--plot` draws docs/method_learning.png; none of them runs anything. `--trial` runs all of it a twentieth as
long, with rows and runs in the cache.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from pathlib import Path

from . import common, learning, learning_data, method_learning_plan, method_learning_report, method_learning_tables
from .method_learning_plan import Piece
from .method_learning_probes import diagnose
from .method_learning_rows import COMPARED, MORE, TASKS, Work, file_of, nf4, others
from .method_learning_runs import train, tune

GROUPS = {
    "prepare": "the index set and the base in NF4",
    "probes": "diagnostics of every row",
    "first": "named rows and controls: lr, and seed 0 on the demo task",
    "others": "the other rows, one seed on the demo task",
    "seeds": "named rows and controls, further seeds on the demo task",
    "trec": "TREC: diagnostics, lr and all seeds of the named rows and controls",
    "more": "MeZO and Sensitive over NF4, more seeds on both tasks",
}


def pieces(work: Work) -> list[Piece]:
    """All of it, the most telling first. Each row of METHODS stands for itself; what it needs comes before it."""
    s = work.sizes
    out = [Piece("prepare", "base/nf4", nf4)]
    from pysmezo.methods import METHODS

    out += [_probes("probes", "rt", name) for name in METHODS]
    for name in COMPARED:
        out += [_lr("first", "rt", name), _run("first", "rt", name, 0, s.forwards)]
    out += [_run("others", "rt", name, 0, s.other) for name in others()]
    out += [_run("seeds", "rt", name, seed, s.forwards) for seed in range(1, s.seeds) for name in COMPARED]
    for name in COMPARED:
        out += [_probes("trec", "trec", name), _lr("trec", "trec", name)]
    out += [_run("trec", "trec", name, seed, s.forwards) for seed in range(s.seeds) for name in COMPARED]
    more = range(s.seeds, s.more_seeds)
    return out + [_run("more", task, name, seed, s.forwards) for task in TASKS for seed in more for name in MORE]


def _probes(group: str, task: str, name: str) -> Piece:
    return Piece(group, f"diagnose/{task}/{name}", lambda work: diagnose(work, task, name))


def _lr(group: str, task: str, name: str) -> Piece:
    key = f"lr/{task}/{name}"
    return Piece(group, key, lambda work: work.piece(key, lambda: tune(work, task, name)))


def _run(group: str, task: str, name: str, seed: int, forwards: int) -> Piece:
    """A named row or control at its lr, looked at with test; another at the lr of its diagnostics, without."""
    compared = name in COMPARED
    kind = "more" if group == "more" else "run" if compared else "other"
    key = f"{kind}/{task}/{name}/seed{seed}"

    def make(work: Work):
        lr = work.done[f"{'lr' if compared else 'diagnose'}/{task}/{name}"]
        every = work.sizes.look if compared else work.sizes.other_look
        return train(work, key, task, name, seed, lr["lr"], lr["eps"], forwards, every, compared)

    return Piece(group, key, lambda work: work.piece(key, lambda: make(work)), forwards)


def has_trec(work: Work) -> bool:
    """TREC's files; a row of their own says why not."""
    try:
        learning_data.trec()
    except (subprocess.CalledProcessError, RuntimeError, OSError, KeyError) as e:
        why = f"TREC cannot be had: {e}"
        if work.done.get("data/trec", {}).get("not_run") != why:
            common.append(work.file, {"piece": "data/trec", "not_run": why})
        return False
    if "not_run" in work.done.get("data/trec", {"not_run": ""}):
        work.done.pop("data/trec", None)
        work.piece("data/trec", lambda: {**learning_data.TREC_PARTS, "test": 500})
    return True


def run_all(work: Work) -> None:
    trec = True
    for piece in pieces(work):
        if piece.key in work.done:
            continue
        work.check_time()
        if "/trec/" in piece.key and not (trec := trec and has_trec(work)):
            continue
        piece.make(work)


def main(arguments: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.learning --rows",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--demo", type=Path, help="folder made by pysmezo demo --prepare")
    p.add_argument("--minutes", type=float, default=math.inf, help="stop cleanly after about so many minutes")
    p.add_argument("--trial", action="store_true", help="a twentieth as long; nothing goes to the results")
    p.add_argument("--plan", action="store_true", help="print the pieces that are left and the minutes they take")
    p.add_argument("--table", action="store_true", help="print what is there as text")
    p.add_argument("--json", action="store_true", help="print what is there as one JSON object")
    p.add_argument("--plot", metavar="F.png", nargs="?", const=str(common.ROOT / "docs" / "method_learning.png"))
    a = p.parse_args(arguments)
    file = file_of(a.trial)
    runs = not (a.plan or a.table or a.plot or a.json)
    if runs and a.demo is None:
        p.error("--demo DIR is needed to run; make it by pysmezo demo --prepare DIR")
    work = Work(a.demo or Path(), a.minutes, a.trial)
    if a.plan:
        print(method_learning_plan.plan(pieces(work), work, GROUPS))
    if a.plot:
        command = [sys.executable, "-m", "benchmarks.method_learning_plot", file, str(Path(a.plot).resolve())]
        if code := subprocess.run(command, cwd=common.ROOT).returncode:
            sys.exit(code)
    if runs:
        try:
            run_all(work)
            common.note("all pieces are done")
        except learning.OutOfTime:
            common.note("out of time; run again to go on")
    rows = common.rows(file)
    if a.table or runs:
        print(method_learning_tables.table(rows, work.sizes))
    if a.json or runs:
        found = method_learning_report.result(rows, work.sizes)
        common.show({"machine": common.machine(), "isa": common.isa(), **found}, True)


if __name__ == "__main__":
    main()
