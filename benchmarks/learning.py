"""`python -m benchmarks.learning --demo DIR`: does masking by magnitude learn better than a random mask, or than none?

The protocol, fixed before the first run. Methods: MeZO, RandomMask(0.75), SparseMeZO(0.75), all with fp32 trained
values.
  0  eps and lr diagnostics of each method on the first training batches (32 probes).
  1  lr on dev: four values a factor 3 apart, 200 steps each, one seed of its own; more values until the best dev loss
     is not at an end.
  2  five seeds x 600 steps at that lr. Within a seed all methods see the same batches and the same z, restricted by
     their mask.
  3  each run looks at the test set once, after its last step.
  4  SMS spam, one seed; lr carried over by the ratio of the measured curvatures (lr * tr(H) here / tr(H) there).
  5  seed 0 again with operand "split", which rounds no perturbation away.
  6  SparseMeZO, seed 0, with the exact Gaussian and with Rademacher noise (gaussian8 is what stages 0-5 use).
  7  SparseMeZO again over the demo's model quantized to NF4, seeds and batches of stage 2: with the lr and eps of the
     bf16 base, and with its own, found as in stages 0 and 1. The latter was added when the former was done: a quantized
     base is another model, and papers' or another base's lr does not carry over.

Every finished piece is a row of results/learning.jsonl and is not run again; unfinished runs go on from their journals
in the cache. `--table` prints the paired comparison, `--json` its differences, `--plot` draws docs/learning.png; none
of them runs anything.

`--rows` is another comparison, of the rows of METHODS at equal forwards: benchmarks/method_learning.py, which takes the
other flags then.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from pathlib import Path

from . import common, learning_data, learning_report

FILE = "learning.jsonl"
METHODS = ("mezo", "random-mask", "sparse-mezo")
SPARSITY, BATCH = 0.75, 16
START_LR = 3e-5
EPS_FACTS = ("eps", "eps_rms_difference", "eps_agreed")
TUNE_SEED, TUNE_STEPS, FACTOR, MOST_LRS = 1000, 200, 3.0, 10
SEEDS, STEPS, LOOK_EVERY = range(5), 600, 100


class OutOfTime(Exception):
    """The minutes given are spent; everything finished is on disk."""


class Work:
    """Rows done, the clock, and the data sets opened so far."""

    def __init__(self, demo: Path, minutes: float, file: str = FILE, tokens: str = "tokens"):
        self.demo, self.until, self.file, self.tokens = demo, time.monotonic() + 60 * minutes, file, tokens
        self.done = {r["piece"]: r for r in common.rows(file)}
        self._data: dict = {}

    def check_time(self) -> None:
        if time.monotonic() > self.until:
            raise OutOfTime

    def piece(self, name: str, make) -> dict:
        """The row of a piece: as it stands in the file, or made now by `make()` and appended."""
        if name not in self.done:
            self.check_time()
            common.note(name)
            start = time.perf_counter()
            row = {"piece": name, **make()}
            row["seconds"] = round(time.perf_counter() - start, 1)
            common.append(self.file, row)
            self.done[name] = row
        return self.done[name]

    def data(self, task: str) -> dict:
        """{train, dev, test: Dataset} of "rt", "spam" or "trec"; test is opened by name like the rest but read only by
        `finish`."""
        if task not in self._data:
            from pysmezo import data

            files = learning_data.files(task, self.demo)
            folder = common.cache_dir(self.tokens)
            self._data[task] = {
                part: data.tokenize(self.demo / "model", files[part], files["task"], folder / f"{task}-{part}.ids")
                for part in ("train", "dev", "test")
            }
        return self._data[task]


def method_of(name: str, noise: str = "gaussian8"):
    from pysmezo.methods import METHODS as TABLE

    return TABLE[name](noise=noise) if name == "mezo" else TABLE[name](sparsity=SPARSITY, noise=noise)


def nf4_model(work: Work) -> Path:
    """The demo's model with its block weights in NF4, made once."""
    out = common.cache_dir("nf4") / "model"
    if not out.exists():
        command = [sys.executable, "-m", "pysmezo", "quantize", "--model", str(work.demo / "model"), "--dtype", "nf4"]
        subprocess.run([*command, "--out", str(out)], cwd=common.ROOT, check=True, stdout=sys.stderr)
    return out


def open_run(work: Work, method, seed: int, lr, eps, operand: str, run_dir, model: Path | None = None):
    from pysmezo import Runtime

    return Runtime.from_pretrained(
        model or work.demo / "model",
        method=method,
        lr=lr,
        eps=eps,
        seed=seed,
        values="fp32",
        operand=operand,
        run_dir=run_dir,
        sync_every=20,
    )


def density(run, count_now: bool) -> float:
    """Selected share of the trained tensors; counted element by element when a mask may have shrunk."""
    linear = {i: rows * cols for i, (_, rows, cols, block_linear) in enumerate(run._engine.tensors) if block_linear}
    selected = sum(int(run._engine.mask(i).sum()) for i in linear) if count_now else run._engine.n_trained
    return selected / sum(linear.values())


# --------------------------------------------------------------------------------------------------------------- pieces


def diagnose(
    work: Work, task: str, name: str, noise: str = "gaussian8", operand: str = "nearest", model: Path | None = None
) -> dict:
    """Stage 0: eps by agreement of g at eps and 2 eps, tr(H) over 32 probes, what survives operand rounding. model: the
    base in NF4; None is the demo's."""

    from pysmezo import ArgumentError

    def make():
        train = work.data(task)["train"]
        batches = train.batches(TUNE_SEED, BATCH)
        with open_run(work, method_of(name, noise), TUNE_SEED, "auto", "auto", operand, None, model) as run:
            try:
                run.resolve_auto([next(batches) for _ in range(32)])
                row = {k: run.choices[k] for k in (*EPS_FACTS, "lr", "trace_h", "trace_h_error")}
            except ArgumentError as e:  # the curvature is lost in noise: the grid of stage 1 then starts at START_LR
                row = {k: run.choices[k] for k in EPS_FACTS} | {"lr": START_LR, "trace_h": None, "trace_h_error": None}
                row["note"] = str(e)
            return row | {"survival": run._engine.surviving_perturbation(row["eps"], 1), "density": density(run, False)}

    return work.piece("/".join(["diagnose", over(task, model), name, noise, operand]), make)


def over(task: str, model: Path | None) -> str:
    """The task in keys of pieces."""
    return task if model is None else f"{task}-nf4"


def dev_scores(run, dataset) -> dict:
    from pysmezo.trainer import evaluate

    r = evaluate(run, dataset, BATCH)
    return {"loss": r.loss, "accuracy": r.accuracy, "auc": r.auc, "accuracy_calibrated": r.accuracy_calibrated}


def train(
    work: Work,
    key: str,
    task: str,
    method,
    seed: int,
    lr: float,
    eps: float,
    operand: str,
    steps: int,
    test: bool,
    model: Path | None = None,
) -> dict:
    """One run to its end, from its journal if it began earlier. Looks at dev every LOOK_EVERY steps (rows of their
    own), and at test once. model: None is the demo's."""
    from pysmezo.trainer import evaluate

    sets = work.data(task)
    curve: list[dict] = []
    losses: list[float] = []
    with open_run(work, method, seed, lr, eps, operand, common.cache_dir("runs", *key.split("/")), model) as run:
        if not run.started:
            run._engine.start(lr, eps)

        def look() -> None:
            made = work.piece(
                f"{key}@{run.step}",
                lambda: {"step": run.step, "forwards": 2 * run.step, **dev_scores(run, sets["dev"])},
            )
            curve.append({k: made[k] for k in ("step", "forwards", "loss", "accuracy", "auc")})

        batches = sets["train"].batches(seed, BATCH, run.step)
        earlier = (f"{key}@{s}" for s in range(0, run.step, LOOK_EVERY))
        curve += [work.done[k] for k in earlier if k in work.done]
        while run.step < steps:
            if run.step % LOOK_EVERY == 0:
                look()
            work.check_time()
            losses.append(run.train_step(next(batches)).loss)
            if not math.isfinite(losses[-1]):
                break  # the step was skipped, and so would be every one after it
        look()
        row = {
            "method": method.name,
            "noise": method.noise,
            "operand": operand,
            "task": task,
            "seed": seed,
            "lr": lr,
            "eps": eps,
        }
        row |= {"steps": run.step, "finite": math.isfinite(curve[-1]["loss"]), "dev_loss": curve[-1]["loss"]}
        row |= {
            "dev_accuracy": curve[-1]["accuracy"],
            "curve": [{k: c[k] for k in ("forwards", "loss", "accuracy", "auc")} for c in curve],
        }
        row |= {"density_start": density(run, False), "density_end": density(run, method.name == "sparse-mezo")}
        row |= {"survival_end": run._engine.surviving_perturbation(eps, run.step + 1)}
        if test:
            r = evaluate(run, sets["test"], BATCH, calibration=sets["dev"])
            row |= {
                "test_loss": r.loss,
                "test_accuracy": r.accuracy,
                "test_auc": r.auc,
                "test_accuracy_calibrated": r.accuracy_calibrated,
            }
            row |= {"test_n": r.n_examples}
        return row


def tune(work: Work, name: str, model: Path | None = None) -> dict:
    """Stage 1: the lr whose dev loss after TUNE_STEPS is least, with a worse one on either side of it."""
    d = diagnose(work, "rt", name, model=model)
    tried: dict[int, float] = {}  # exponent of FACTOR -> dev loss

    def loss_at(k: int) -> float:
        lr = d["lr"] * FACTOR**k
        key, what = f"tune/{over('rt', model)}/{name}/lr{k:+d}", (TUNE_SEED, lr, d["eps"], "nearest", TUNE_STEPS)
        row = work.piece(key, lambda: train(work, key, "rt", method_of(name), *what, False, model))
        return row["dev_loss"] if row["finite"] else math.inf

    for k in (-1, 0, 1, 2):
        tried[k] = loss_at(k)
    best = min(tried, key=tried.get)
    while best in (min(tried), max(tried)) and len(tried) < MOST_LRS:
        k = best - 1 if best == min(tried) else best + 1
        tried[k] = loss_at(k)
        best = min(tried, key=tried.get)
    interior = best not in (min(tried), max(tried))
    return {"lr": d["lr"] * FACTOR**best, "eps": d["eps"], "interior": interior, "trace_h": d["trace_h"]}


def final(
    work: Work,
    key: str,
    task: str,
    method,
    seed: int,
    lr: float,
    eps: float,
    operand: str = "nearest",
    model: Path | None = None,
) -> None:
    work.piece(key, lambda: train(work, key, task, method, seed, lr, eps, operand, STEPS, True, model))


def all_stages(work: Work) -> None:
    for name in METHODS:
        diagnose(work, "rt", name)
    chosen = {name: work.piece(f"lr/rt/{name}", lambda name=name: tune(work, name)) for name in METHODS}
    for seed in SEEDS:
        for name in METHODS:
            final(
                work,
                f"final/rt/{name}/seed{seed}",
                "rt",
                method_of(name),
                seed,
                chosen[name]["lr"],
                chosen[name]["eps"],
            )
    for name in METHODS:
        there = diagnose(work, "spam", name)
        here = chosen[name]["trace_h"]
        lr = chosen[name]["lr"] * (here / there["trace_h"] if here and there["trace_h"] else 1.0)
        final(work, f"final/spam/{name}/seed0", "spam", method_of(name), 0, lr, there["eps"])
    for name in METHODS:
        c = chosen[name]
        final(work, f"split/rt/{name}/seed0", "rt", method_of(name), 0, c["lr"], c["eps"], "split")
    for noise in ("gaussian", "rademacher"):
        c = chosen["sparse-mezo"]
        final(work, f"noise/rt/sparse-mezo/{noise}/seed0", "rt", method_of("sparse-mezo", noise), 0, c["lr"], c["eps"])
    model = nf4_model(work)
    own = work.piece("lr/rt-nf4/sparse-mezo", lambda: tune(work, "sparse-mezo", model))
    for kind, c in (("nf4", chosen["sparse-mezo"]), ("nf4-tuned", own)):
        for seed in SEEDS:
            key = f"{kind}/rt/sparse-mezo/seed{seed}"
            final(work, key, "rt", method_of("sparse-mezo"), seed, c["lr"], c["eps"], model=model)


def main() -> None:
    if "--rows" in sys.argv[1:]:
        from . import method_learning

        return method_learning.main([a for a in sys.argv[1:] if a != "--rows"])
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--demo", type=Path, help="folder made by pysmezo demo --prepare")
    p.add_argument("--max-minutes", type=float, default=math.inf, help="stop cleanly after about so many minutes")
    p.add_argument("--table", action="store_true", help="print the table of what is there")
    p.add_argument("--plot", action="store_true", help="draw docs/learning.png from what is there")
    p.add_argument("--json", action="store_true", help="print what is there as one JSON object")
    a = p.parse_args()
    if a.table or a.plot or a.json:
        rows = common.rows(FILE)
        if a.table:
            print(learning_report.table(rows))
        if a.json:
            common.show({"machine": common.machine(), "isa": common.isa(), **learning_report.result(rows)}, True)
        if a.plot:
            learning_report.plot(rows, common.ROOT / "docs" / "learning.png")
        return
    if a.demo is None:
        p.error("--demo DIR is needed to run; make it by pysmezo demo --prepare DIR")
    try:
        all_stages(Work(a.demo, a.max_minutes))
        common.note("all pieces are done")
    except OutOfTime:
        common.note("out of time; run again to go on")
    print(learning_report.table(common.rows(FILE)))


if __name__ == "__main__":
    main()
