"""The runs of benchmarks.method_learning: one row, one seed, to so many forwards; and the lr that it takes.

On the demo task MeZO, RandomMask and SparseMeZO have run already: benchmarks.learning, stages 1 and 2, the same seeds,
batches and steps. Their lr is taken over, and their journals are committed again, record by record, to look at dev at
more points; the last look must come out as it did then.
"""

from __future__ import annotations

import math
import time

from . import common, learning
from .method_learning_probes import diagnose
from .method_learning_rows import Work, base_of, fields_of, method_of

START = (-1, 0, 1)  # powers of FACTOR around the diagnostics' lr
SAME_LOSS = 1e-3  # of one model on two instruction sets


class Earlier:
    """What benchmarks.learning left of a run on the demo task: records, looks, the final row; nothing for others."""

    def __init__(self, work: Work, task: str, name: str, seed: int, lr: float, eps: float):
        from pysmezo import _core

        self.records, self.looks, self.final = [], {}, None
        if work.trial or task != "rt" or name not in learning.METHODS:
            return
        rows = {r["piece"]: r for r in common.rows(learning.FILE)}
        key = f"final/rt/{name}/seed{seed}"
        row, journal = rows.get(key), common.cache_dir("runs", *key.split("/")) / "journal.smz"
        if row and (row["lr"], row["eps"]) == (lr, eps) and journal.exists():
            self.final, self.records = row, _core.read_journal(str(journal))["records"]
            self.looks = {r["forwards"]: r for p, r in rows.items() if p.startswith(key + "@")}


def train(
    work: Work, key: str, task: str, name: str, seed: int, lr: float, eps: float, forwards: int, every: int, test: bool
) -> dict:
    """One run to its end, from its journal if it began earlier. Looks at dev (rows of their own) where the last whole
    step fits below each multiple of `every` forwards, and at test once. A loss that is not finite ends it: points after
    are None."""
    method = method_of(work, name)
    steps_at = {f: f // method.n_branches for f in range(every, forwards + 1, every)}
    sets, folder = work.data(task), work.folder("runs", *key.split("/"))
    earlier = Earlier(work, task, name, seed, lr, eps)
    curve, finite, stepped, seconds = [], True, 0, 0.0
    with learning.open_run(work, method, seed, lr, eps, "nearest", folder, base_of(work, name)) as run:
        if not run.started:
            run._engine.start(lr, eps)
        row = {"method": fields_of(method), "name": name, "task": task, "seed": seed, "lr": lr, "eps": eps}
        row |= {"branches": method.n_branches, "forwards": forwards, "density": learning.density(run, False)}

        def look(at: int, of: str) -> dict:
            def make():
                if run.step != steps_at.get(at, 0):
                    raise RuntimeError(f"{folder} is at step {run.step}, past the look at {at} forwards: remove it")
                found = earlier.looks.get(at) if at < forwards else None
                found = found or learning.dev_scores(run, sets["dev"])
                return {"forwards": at, "step": run.step} | {k: number(found[k]) for k in ("loss", "accuracy", "auc")}

            made = work.piece(of, make)
            return {k: made[k] for k in ("forwards", "loss", "accuracy")}

        batches = sets["train"].batches(seed, learning.BATCH, run.step)
        # Before its first step a run is its base.
        curve.append(look(0, f"start/{task}/{base_name(work, name)}"))
        for at, step in steps_at.items():
            while finite and run.step < step:
                work.check_time()
                batch = next(batches)
                if run.step < len(earlier.records):
                    r = earlier.records[run.step]
                    run._engine.commit(r["lr"], r["loss"], r["loss_plus"], r["loss_minus"], r["scalars"])
                    continue
                begin = time.perf_counter()
                finite = math.isfinite(run.train_step(batch).loss)
                seconds, stepped = seconds + time.perf_counter() - begin, stepped + method.n_branches
            curve.append(look(at, f"{key}@{at}") if finite else {"forwards": at, "loss": None, "accuracy": None})
            finite = curve[-1]["loss"] is not None
        row |= {"steps": run.step, "finite": finite, "committed_again": min(len(earlier.records), run.step)}
        row |= {"curve": curve, "dev_loss": curve[-1]["loss"], "dev_accuracy": curve[-1]["accuracy"]}
        row |= {"survival_end": run._engine.surviving_perturbation(eps, run.step + 1)}
        row |= {"forward_s": seconds / stepped if stepped else None}
        if test:
            row |= tested(run, sets["test"], earlier, curve[-1]["loss"])
    return row


def base_name(work: Work, name: str) -> str:
    base = base_of(work, name)
    return base.name if base else "model"


def number(x: float | None) -> float | None:
    """None for what is not finite: JSON has no such numbers."""
    return x if x is not None and math.isfinite(x) else None


def tested(run, dataset, earlier: Earlier, dev_loss: float | None) -> dict:
    """Scores of the test set; those of then, where the run was committed again and is the same model."""
    if earlier.final:
        then = earlier.final["dev_loss"]
        if dev_loss is None or abs(dev_loss - then) > SAME_LOSS:
            raise RuntimeError(f"dev loss {dev_loss} after committing again, expected {then}: not the run it was")
        return {k: earlier.final[k] for k in ("test_loss", "test_accuracy", "test_auc", "test_n")}
    from pysmezo.trainer import evaluate

    r = evaluate(run, dataset, learning.BATCH)
    found = {"test_loss": r.loss, "test_accuracy": r.accuracy, "test_auc": r.auc}
    return {k: number(v) for k, v in found.items()} | {"test_n": r.n_examples}


# --------------------------------------------------------------------------------------------------------------- lr


def best(tried: dict[int, float]) -> int:
    """Of equal losses the smaller lr: where all diverge the way is down."""
    return min(tried, key=lambda k: (tried[k], k))


def is_interior(tried: dict[int, float]) -> bool:
    return min(tried) < best(tried) < max(tried)


def next_exponent(tried: dict[int, float], most: int = learning.MOST_LRS) -> int | None:
    """The next power of FACTOR to try: those of START, then one beyond the end that is best. None: enough."""
    for k in START:
        if k not in tried:
            return k
    if is_interior(tried) or len(tried) >= most:
        return None
    return best(tried) + (1 if best(tried) == max(tried) else -1)


def tune(work: Work, task: str, name: str) -> dict:
    """The lr with the least dev loss after sizes.tune forwards of a seed of its own, a factor 3 apart, with a worse one
    on either side."""
    earlier = {} if work.trial or task != "rt" else {r["piece"]: r for r in common.rows(learning.FILE)}
    if f"lr/rt/{name}" in earlier:
        found = earlier[f"lr/rt/{name}"]
        runs = [r for p, r in earlier.items() if p.startswith(f"tune/rt/{name}/lr") and "dev_loss" in r]
        tried = sorted((r["lr"], number(r["dev_loss"])) for r in runs)
        taken = {k: found[k] for k in ("lr", "eps", "interior")}
        return taken | {"tried": tried, "from": f"results/{learning.FILE}"}
    d, tried = diagnose(work, task, name), {}
    while (k := next_exponent(tried)) is not None:
        lr, key = d["lr"] * learning.FACTOR**k, f"tune/{task}/{name}/lr{k:+d}"
        what = (task, name, learning.TUNE_SEED, lr, d["eps"], work.sizes.tune, work.sizes.tune, False)
        row = work.piece(key, lambda key=key, what=what: train(work, key, *what))
        tried[k] = row["dev_loss"] if row["dev_loss"] is not None else math.inf
    chosen = d["lr"] * learning.FACTOR ** best(tried)
    pairs = [(d["lr"] * learning.FACTOR**k, number(tried[k])) for k in sorted(tried)]
    return {"lr": chosen, "eps": d["eps"], "interior": is_interior(tried), "tried": pairs}
