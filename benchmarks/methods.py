"""`python -m benchmarks.methods --demo DIR [--part time|memory|queries] [--json]`: what every method of the table costs.

time     a step of 16 texts of 64 tokens against our own two bare forwards, all methods in one interleaved run
memory   the peak of a process that takes some steps, by method; --picture draws docs/memory-methods.png
queries  16 queries in one visit against 16 steps, a 1B of random weights streamed in a quarter of its size, cold reads

DIR is what `pysmezo demo --prepare DIR` makes; queries needs none. A finished row is appended to results/methods.jsonl at
once and not measured again on such a machine, but with --again; rows of time that are missing are measured together.
--quick runs all of it on a tiny random model: nothing appended, no targets.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from . import common, methods_memory, methods_queries, methods_report, methods_rows, methods_time, streaming_models
from .streaming_models import Spec
from .streaming_rows import Bench

FILE = "methods.jsonl"
PARTS = ("time", "memory", "queries")
TEXTS, TOKENS = 16, 64
PICTURE = common.ROOT / "docs" / "memory-methods.png"
LARGE = Spec("llama-1b", "bf16")
QUICK_QUERIES, QUICK_MEMORY = 2, ("mezo", "sensitive", "tezo-adam")
NO_DEMO = "needs --demo DIR, made by pysmezo demo --prepare DIR"


class Asked(NamedTuple):
    model: Path | None
    texts: int
    tokens: int
    rounds: int
    threads: int
    only: str
    quick: bool


def asked_rows(part: str, asked: Asked) -> list:
    """What the part measures: rows or cases, which have labels."""
    found = {
        "time": methods_rows.all_rows,
        "memory": methods_memory.all_cases,
        "queries": lambda: list(methods_queries.CASES),
    }[part]()
    if asked.quick and part == "queries":
        found = [case._replace(queries=QUICK_QUERIES, tokens=16) for case in (found[0], found[-1])]
    if asked.quick and part == "memory":
        found = [case for case in found if case.row.method["kind"] in QUICK_MEMORY]
    return [row for row in found if asked.only in row.label]


def run_part(part: str, left: list, asked: Asked, bench: Bench, save) -> dict[str, dict]:
    if part == "queries":

        def model_of(more_bytes: int) -> Path:
            return asked.model if asked.quick else bench.models.path(LARGE, more_bytes)

        found = methods_queries.measure(bench, left, LARGE, model_of, save)
        bench.models.let_go(set())
        return found
    if asked.model is None:
        return {row.label: {"not_run": NO_DEMO} for row in left}
    size = (asked.model, asked.texts, asked.tokens)
    if part == "time":
        return methods_time.measure(left, *size, asked.rounds, asked.threads, save)
    return methods_memory.measure(left, *size, asked.threads, save)


def measure(part: str, asked: Asked, bench: Bench, where: dict, done: dict[str, dict]) -> dict[str, dict]:
    """Figures by label, of the file where it has them."""
    rows = asked_rows(part, asked)
    found = {row.label: done[f"{part}, {row.label}"] for row in rows if f"{part}, {row.label}" in done}

    def save(label: str, figures: dict) -> None:
        """A trial leaves nothing, and what did not run is tried again next time."""
        if not asked.quick and "not_run" not in figures:
            record = {"row": f"{part}, {label}", "machine": where, "isa": common.isa(), "measured": figures}
            common.append(FILE, {"date": datetime.date.today().isoformat(), **record})

    left = [row for row in rows if row.label not in found]
    if left:
        found |= run_part(part, left, asked, bench, save)
    return {row.label: found[row.label] for row in rows}


def draw(found: dict[str, dict], asked: Asked, out: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="pysmezo-methods-") as folder:
        figures = Path(folder) / "figures.json"
        model = "a tiny model" if asked.quick else "SmolLM2-135M in bf16"
        title = f"A step on {asked.texts} texts of {asked.tokens} tokens, {model}"
        figures.write_text(json.dumps({"title": title, "rows": found}))
        command = [sys.executable, "-m", "benchmarks.methods_picture", str(figures), str(out)]
        subprocess.run(command, cwd=common.ROOT, check=True)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--demo", type=Path, help="folder made by pysmezo demo --prepare")
    p.add_argument("--part", choices=PARTS, action="append", help="default: all; may be given more than once")
    p.add_argument("--only", default="", metavar="TEXT", help="rows whose label holds this")
    p.add_argument("--again", action="store_true", help="measure rows that are in the file, too")
    p.add_argument("--quick", action="store_true", help="a trial on a tiny random model")
    p.add_argument("--rounds", type=int, default=9, help="of time; at least 2")
    p.add_argument("--repetitions", type=int, default=5, help="of queries")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--models", type=Path, help="where models are made (default: the benchmarks' cache)")
    p.add_argument("--keep-models", action="store_true", help="do not delete the 1B")
    p.add_argument(
        "--picture", type=Path, nargs="?", const=PICTURE, help=f"draw memory (default: {PICTURE.name} in docs)"
    )
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    folder = (a.models or common.cache_dir("streaming")).resolve()
    bench = Bench(streaming_models.Models(folder, None, a.keep_models), a.threads, 1 if a.quick else a.repetitions)
    if a.quick:
        from .memory import make_model

        asked = Asked(make_model("tiny bf16", folder), 4, 16, 2, a.threads, a.only, True)
    else:
        model = a.demo.resolve() / "model" if a.demo else None
        asked = Asked(model, TEXTS, TOKENS, a.rounds, a.threads, a.only, False)
    where, isa = common.machine(), common.isa()
    done = {} if a.again or a.quick else common.earlier(FILE, where, isa)
    rows, targets, tables = {}, [], []
    parts = [part for part in PARTS if part in (a.part or PARTS) and asked_rows(part, asked)]
    if a.rounds < 2 or a.repetitions < 1 or not parts:
        p.error("--rounds must be at least 2, --repetitions 1" if parts else f"no row holds {a.only!r}")
    for part in parts:
        found = measure(part, asked, bench, where, done)
        rows |= {f"{part}, {label}": r for label, r in found.items()}
        targets += [] if a.quick else methods_report.targets(part, found)
        tables.append(methods_report.table(part, found))
        if part == "memory" and a.picture:
            draw(found, asked, a.picture)
    print("\n\n".join(tables), "\n")
    result = {"machine": where, "isa": isa, "threads": a.threads, "rows": rows, "targets": targets}
    if a.quick or a.only or a.part:
        common.show(result, a.json)
    else:
        common.finish("methods", result, a.json)


if __name__ == "__main__":
    main()
