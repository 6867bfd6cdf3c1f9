"""`python -m benchmarks.textbook --demo DIR`: the textbook MeZO step and bare forwards of transformers, bf16, 2
threads.

DIR is what `pysmezo demo --prepare DIR` makes; with only a `model/` in it, the demo's batches are not run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from . import batches, common


def load_batches(child: common.Child, folder: Path) -> dict[str, str]:
    """Gives the child every batch that can be made; returns {name: why not} of the others."""
    config = json.loads((folder / "model" / "config.json").read_text())
    child.ask("batch", name="unpadded", **batches.unpadded(config["vocab_size"]))
    missing = {}
    for side in ("right", "left"):
        name = f"demo, padded {side}"
        if not (folder / "train.jsonl").exists() or not (folder / "model" / "tokenizer.json").exists():
            missing[name] = "no train.jsonl and tokenizer.json; make them by pysmezo demo --prepare"
            continue
        examples = batches.demo_examples(folder)
        made = batches.demo_padded(
            lambda t: child.ask("encode", tokenizer=str(folder / "model" / "tokenizer.json"), texts=t)["ids"],
            examples,
            side,
        )
        child.ask("batch", name=name, **made)
    return missing


def measure(folder: Path, rounds: int) -> dict:
    where = common.machine()
    with common.Child("benchmarks.torch_child") as child:
        versions = child.ask("load", model=str(folder / "model"))
        missing = load_batches(child, folder)
        names = [n for n in ("unpadded", "demo, padded right", "demo, padded left") if n not in missing]
        parts: dict[str, list] = {}
        seed = iter(range(1, 10**6))

        def step(name):
            r = child.ask("textbook", name=name, seed=next(seed))
            parts.setdefault(name, []).append(r)
            return r["seconds"]

        actions = {}
        for n in names:
            actions[f"textbook step, {n}"] = lambda n=n: step(n)
            actions[f"two forwards, body only, {n}"] = lambda n=n: child.ask("forwards", name=n, body_only=True)[
                "seconds"
            ]
            actions[f"two forwards, with logits, {n}"] = lambda n=n: child.ask("forwards", name=n, body_only=False)[
                "seconds"
            ]
        seconds = common.interleave(actions, rounds, log=common.note)
    rows = {k: common.summary(v) for k, v in seconds.items()}
    for n in names:
        for part, label in (("passes_s", "four normal passes"), ("forwards_s", "its two forwards")):
            rows[f"  of the step: {label}, {n}"] = common.summary([r[part] for r in parts[n][-rounds:]])
    rows |= {f"textbook step, {n}": {"not_run": why} for n, why in missing.items()}
    return {"machine": where, "isa": common.isa(), "versions": versions, "rows": rows, "targets": []}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--demo", type=Path, required=True, help="folder with model/ and, for the demo's batches, train.jsonl"
    )
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    common.finish("textbook", measure(a.demo, a.rounds), a.json)


if __name__ == "__main__":
    main()
