"""The time of a step of every method against our own two bare forwards, all runtimes open at once and in turns.

A round visits every row, with bare forwards of a plain runtime before every few rows; a row is divided by the mean of the
two nearest of its own round, so that a slow spell hits both. A step applies the record before it, and its own is synced.
The plain runtime is MeZO's, whose working copies bare forwards read too: 3 bytes a weight, where a base that is only read
has 2.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path

import psutil

from . import common
from .methods_rows import Row, row_of

LR = 1e-7
BARE_EVERY = 4  # rows
MEMORY_SHARE = 0.6  # of what is available, for runtimes that are open at once


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return (values[0],) * 3
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def flop_share(rank: int, shapes: list[tuple[int, int]]) -> float:
    """What side products of that rank add to the products of the weights."""
    return rank * sum(m + n for m, n in shapes) / sum(m * n for m, n in shapes)


def groups(rows: list[Row], model: Path, batch, room: int) -> list[list[Row]]:
    """Rows that fit in memory together, each group after the plain runtime and MeZO."""
    from pysmezo import planning

    core = planning.core_batch(batch)

    def held(row: Row) -> int:
        planner = planning.planner(model, row.made())
        return planner.plan(core, row.made().n_branches)["predicted_peak_bytes"]

    plain = 2 * held(row_of(kind="mezo"))
    out, left = [], 0
    for row in rows:
        need = held(row)
        if not out or need > left:
            out.append([])
            left = room - plain
        out[-1].append(row)
        left -= need
    return out


class Runs:
    """The runtimes of a group, with run folders that go with them, and the yardstick: a plain one that never steps."""

    def __init__(self, model: Path, threads: int, stack: contextlib.ExitStack):
        self.model, self.threads, self.stack = model, threads, stack
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pysmezo-methods-")))
        self.yardstick = self.open(row_of(kind="mezo"), "yardstick")

    def open(self, row: Row, name: str | None = None):
        from pysmezo import Runtime

        run_dir = self.folder / (name or row.label.replace(" ", "-"))
        made = Runtime.from_pretrained(
            self.model, method=row.made(), lr=LR, eps=row.eps, run_dir=run_dir, threads=self.threads
        )
        return self.stack.enter_context(made)


def timed(action) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def step(run, batch) -> float:
    begin = time.perf_counter()
    if run.train_step(batch).skipped:
        raise AssertionError("a step was skipped: its record changes nothing, expected a finite loss")
    return time.perf_counter() - begin


def one_round(runs: dict, bare) -> dict[str, tuple[float, float]]:
    """(seconds of the step, of two bare forwards about it) by label."""
    spent, names, forwards = {}, list(runs), []
    for i, name in enumerate(names):
        if i % BARE_EVERY == 0:
            forwards.append(bare())
        spent[name] = runs[name]()
    forwards.append(bare())
    return {
        name: (spent[name], (forwards[i // BARE_EVERY] + forwards[i // BARE_EVERY + 1]) / 2)
        for i, name in enumerate(names)
    }


def figures(row: Row, rounds: list[dict], first_s: float, shapes: list[tuple[int, int]]) -> dict:
    turns = [r[row.label] for r in rounds]
    low, middle, high = quartiles([s / bare for s, bare in turns])
    n_branches = row.made().n_branches
    out = {
        "step_s": statistics.median(s for s, _ in turns),
        "bare_s": statistics.median(bare for _, bare in turns),
        "ratio": middle,
        "ratio_q1": low,
        "ratio_q3": high,
        "branches": n_branches,
        "per_branch": middle / (n_branches / 2),
        "over_mezo": statistics.median(r[row.label][0] / r["mezo"][0] for r in rounds),
        "first_s": first_s,
        "rounds": len(turns),
    }
    return out | ({"flop_share": flop_share(row.rank, shapes)} if row.rank else {})


def measure_group(rows: list[Row], model: Path, batch, rounds: int, threads: int, said: str) -> dict[str, dict]:
    from pysmezo.errors import PysmezoError

    found, first, runs = {}, {}, {}
    with contextlib.ExitStack() as stack:
        side = Runs(model, threads, stack)
        mezo = row_of(kind="mezo")
        for row in [mezo, *(r for r in rows if r != mezo)]:
            try:
                run = side.open(row)
                first[row.label] = step(run, batch)
                for _ in range(1, row.warm_up):
                    step(run, batch)
                runs[row.label] = run
            except (PysmezoError, AssertionError) as e:
                found[row.label] = {"not_run": str(e)}
            common.note(f"time, {said}: {row.label}: {found.get(row.label) or 'open'}")
        shapes = [(m, n) for _, m, n, linear in side.yardstick._engine.tensors if linear]
        actions = {name: lambda run=run: step(run, batch) for name, run in runs.items()}

        def bare() -> float:
            return timed(lambda: side.yardstick.bare_forward(batch))

        bare()
        done = []
        for r in range(rounds):
            done.append(one_round(actions, bare))
            common.note(f"time, {said}: round {r + 1} of {rounds}")
    for row in rows:
        if row.label in runs:
            found[row.label] = figures(row, done, first[row.label], shapes)
    return {row.label: found[row.label] for row in rows}


def measure(rows: list[Row], model: Path, texts: int, tokens: int, rounds: int, threads: int, save) -> dict[str, dict]:
    """Figures by label; save(label, figures) of a group as soon as it is measured."""
    from pysmezo import planning

    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    batch = planning.random_batch(texts, tokens, vocab)
    found = {}
    together = groups(rows, model, batch, int(MEMORY_SHARE * psutil.virtual_memory().available))
    for i, group in enumerate(together):
        for label, figure in measure_group(
            group, model, batch, rounds, threads, f"group {i + 1} of {len(together)}"
        ).items():
            found[label] = figure
            save(label, figure)
    return found
