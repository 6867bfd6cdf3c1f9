"""`python -m benchmarks.step --demo DIR [--json]`: our step against the textbook's and against bare forwards, in one
interleaved run.

DIR is what `pysmezo demo --prepare DIR` makes. Two batches: 16 x 64 unpadded tokens, and the demo's own (padded for
torch as a collator pads it, packed for us). The torch side lives in a child process that waits on a pipe while we run,
so each side has the cores alone. A step of ours includes the catch-up of the record before it and a synced journal. The
textbook gets labels at every position of the unpadded batch, so all logits are computed; we get one label a text.
`--large` adds two layers of a 7B with random weights, which no last-level cache holds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from pathlib import Path

from . import batches, common, shapes, textbook

LR, EPS = 1e-7, 1e-3
LIMITS = {"gaussian8": 1.4, "rademacher": 1.2, "gaussian": 2.0}
DEMO = "demo, padded right"


def ours(noises) -> dict:
    """Row name -> method."""
    from pysmezo import MeZO, RandomMask, SparseMeZO

    made = {}
    for noise in noises:
        made[f"MeZO(), {noise}"] = MeZO(noise=noise)
        made[f"SparseMeZO, {noise}"] = SparseMeZO(sparsity=0.75, noise=noise)
    made["MeZO(all), gaussian8"] = MeZO(trains="all")
    made["RandomMask, gaussian8"] = RandomMask(sparsity=0.75)
    return made


class Side:
    """Our runtimes, opened once each with a run folder that goes when the benchmark ends."""

    def __init__(self, model: Path, stack: contextlib.ExitStack, threads: int):
        self.model, self.stack, self.threads = model, stack, threads
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

    def open(self, name: str, method):
        from pysmezo import Runtime

        run_dir = self.folder / str(len(list(self.folder.iterdir())))
        run = Runtime.from_pretrained(self.model, method=method, lr=LR, eps=EPS, run_dir=run_dir, threads=self.threads)
        return self.stack.enter_context(run)


def our_batches(demo: Path, vocab: int) -> dict:
    """The same tokens as the child's, in our own forms: one label a text, and a choice between label words."""
    from pysmezo.tasks import load
    from pysmezo.tokenizer_client import TokenizerClient

    ids = batches.unpadded(vocab)["input_ids"]
    made = {"unpadded": {"input_ids": ids, "labels": batches.last_label_only(ids)}}
    if (demo / "train.jsonl").exists():
        client = TokenizerClient(demo / "model", load(demo / "task.yaml"))
        made[DEMO] = client.batch(batches.demo_examples(demo))
        client.close()
    return made


def torch_actions(child, names, label: str = "") -> dict:
    """Rows of the torch side. A textbook step that counts must not repeat its seed."""
    seed = iter(range(1, 10**9))
    actions = {}
    for n in names:
        actions[f"textbook step, {n}{label}"] = lambda n=n: child.ask("textbook", name=n, seed=next(seed))["seconds"]
        actions[f"transformers forwards, body only, {n}{label}"] = lambda n=n: child.ask(
            "forwards", name=n, body_only=True
        )["seconds"]
        actions[f"transformers forwards, with logits, {n}{label}"] = lambda n=n: child.ask(
            "forwards", name=n, body_only=False
        )["seconds"]
    return actions


def run_large(rounds: int, threads: int) -> tuple[dict, dict]:
    """Rows of the shape that no cache holds, and their notes."""
    from pysmezo import MeZO, SparseMeZO

    folder = shapes.make_folder(common.cache_dir("shapes", "7b-2-layers"), shapes.LARGE)
    ids = batches.unpadded(shapes.LARGE["vocab"])["input_ids"]
    batch = {"input_ids": ids, "labels": batches.last_label_only(ids)}
    with contextlib.ExitStack() as stack:
        child = stack.enter_context(common.Child("benchmarks.torch_child"))
        child.ask("load", model=str(folder), threads=threads)
        child.ask("batch", name="unpadded", input_ids=ids)
        side = Side(folder, stack, threads)
        sparse, dense = side.open("sparse", SparseMeZO(sparsity=0.75)), side.open("dense", MeZO(trains="all"))
        actions = torch_actions(child, ["unpadded"], ", 2 layers of a 7B")
        actions["our forwards, unpadded, 2 layers of a 7B"] = lambda: sparse.bare_forward(batch) and None
        actions["SparseMeZO, gaussian8, unpadded, 2 layers of a 7B"] = lambda: sparse.train_step(batch) and None
        actions["MeZO(all), gaussian8, unpadded, 2 layers of a 7B"] = lambda: dense.train_step(batch) and None
        return common.interleave(actions, rounds, log=lambda t: common.note("large shape: " + t))


def targets(median: dict, missing: dict) -> list[dict]:
    """The lines of the table of what must be shown, from medians of one run."""
    out = []

    def ratio(a: str, b: str):
        return median[a] / median[b] if a in median and b in median else None

    for n in ("unpadded", DEMO):
        why = missing.get(n, "not measured")
        for m in ("MeZO(all), gaussian8", "SparseMeZO, gaussian8"):
            name = f"textbook step / {m}, {n}"
            out.append(common.target(name, ratio(f"textbook step, {n}", f"{m}, {n}"), at_least=10, why=why))
        body = f"transformers forwards, body only, {n}"
        share = ratio(f"SparseMeZO, gaussian8, {n}", body)
        out.append(common.target(f"SparseMeZO, gaussian8 / two body-only forwards, {n}", share, at_most=1.0, why=why))
    for noise, limit in LIMITS.items():
        for m in ("SparseMeZO", "MeZO()"):
            share = ratio(f"{m}, {noise}, unpadded", "our forwards, unpadded")
            out.append(
                common.target(
                    f"{m}, {noise} / our two bare forwards, unpadded", share, at_most=limit, why="not measured"
                )
            )
    return out


def measure(demo: Path, rounds: int, threads: int, large: bool) -> dict:
    where = common.machine()
    vocab = json.loads((demo / "model" / "config.json").read_text())["vocab_size"]
    with contextlib.ExitStack() as stack:
        child = stack.enter_context(common.Child("benchmarks.torch_child"))
        versions = child.ask("load", model=str(demo / "model"), threads=threads)
        missing = textbook.load_batches(child, demo)
        actions = torch_actions(child, [n for n in ("unpadded", DEMO) if n not in missing])
        side, made = Side(demo / "model", stack, threads), our_batches(demo, vocab)
        runs = {name: side.open(name, method) for name, method in ours(LIMITS).items()}
        for n, batch in made.items():
            bare = runs["MeZO(), gaussian8"]
            actions[f"our forwards, {n}"] = lambda bare=bare, batch=batch: bare.bare_forward(batch) and None
            for name, run in runs.items():
                if n == "unpadded" or "gaussian8" in name:
                    actions[f"{name}, {n}"] = lambda run=run, batch=batch: run.train_step(batch) and None
        seconds = common.interleave(actions, rounds, log=common.note)
    if large:
        try:
            seconds |= run_large(max(1, rounds // 3), threads)
        except (RuntimeError, MemoryError, OSError) as e:
            missing["2 layers of a 7B"] = str(e)
    rows = {name: common.summary(s) for name, s in seconds.items()}
    rows |= {n: {"not_run": why} for n, why in missing.items()}
    if not large:
        rows["2 layers of a 7B"] = {"not_run": "left out by --no-large"}
    median = {name: r["median_s"] for name, r in rows.items() if "median_s" in r}
    found = targets(median, missing)
    return {
        "machine": where,
        "isa": common.isa(),
        "threads": threads,
        "versions": versions,
        "rows": rows,
        "targets": found,
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--demo", type=Path, required=True, help="folder made by pysmezo demo --prepare")
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--large", action=argparse.BooleanOptionalAction, default=True)
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    common.finish("step", measure(a.demo, a.rounds, a.threads, a.large), a.json)


if __name__ == "__main__":
    main()
