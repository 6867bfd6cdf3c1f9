"""The verb plan: what a run with these flags would hold, read and take, from headers alone; exit 3 when it does not
fit.
"""

from __future__ import annotations

import sys

from .. import memory, options, planning
from ..cli import DOES_NOT_FIT, OK
from ..progress import mib


def add_flags(parser, verb: str) -> None:
    parser.add_argument("--config", metavar="F.yaml", help="flags as YAML; flags on the command line win")
    parser.add_argument(
        "--length",
        type=int,
        metavar="N",
        help=f"tokens of a text (default: --max-length, else {planning.DEFAULT_LENGTH})",
    )
    options.add_flags(parser)


def label_options(model, task) -> list[list[int]] | None:
    """The label words' token ids where all examples share them; None: each example has its own."""
    from ..tasks import from_yaml
    from ..tokenizer_client import TokenizerClient

    found = from_yaml(task)
    if not found.shared_options:
        return None
    client = TokenizerClient(model, found)
    try:
        return client.batch([{**dict.fromkeys(found.columns, "a"), found.label_column: 0}]).options
    finally:
        client.close()


def run(arguments, verb: str):
    given = dict(vars(arguments))
    given.pop("json")
    length, config = given.pop("length"), given.pop("config")
    s, method = options.settings({**(options.read_config(config) if config else {}), **given})
    options.require(s, "model")
    length = planning.length_of(length, s)
    p = planning.planner(s["model"], method, **options.opening(s))
    words = label_options(s["model"], s["task"]) if s["task"] else None
    found = planning.plan(p, s["batch"], length, method.n_branches, words, planning.kept_rates(s["model"]))
    # An opened process holds the interpreter, numpy and what this one has now.
    found["predicted_process_bytes"] = memory.rss_bytes() + found["predicted_peak_bytes"]
    print("\n".join(lines(found, s["batch"], length)), flush=True)
    if not found["fits"]:
        print(f"error: {planning.advice(found, s['batch'], length)}", file=sys.stderr)
    return (OK if found["fits"] else DOES_NOT_FIT), found


def lines(r: dict, batch: int, length: int) -> list[str]:
    budget = "none: all in memory" if r["budget_bytes"] is None else mib(r["budget_bytes"])
    fits = "" if r["budget_bytes"] is None else ", fits" if r["fits"] else ", does not fit"
    step = (
        "unknown until `pysmezo doctor` has run here"
        if r["predicted_step_s"] is None
        else f"{r['predicted_step_s']:.3g} s"
    )
    micro = f", in {r['micro_batches']} micro-batches, each a pass of its own" if r["micro_batches"] > 1 else ""
    out = [
        f"batch             {batch} texts of {length} tokens{micro}",
        f"budget            {budget}{fits}",
        f"peak              {mib(r['predicted_peak_bytes'])} above open, process {mib(r['predicted_process_bytes'])}",
        *(f"  {name:<16}{n / 2**20:9.1f} MiB" for name, n in r["bytes_by_purpose"].items() if n),
        f"read a step       {mib(r['bytes_read_per_step'])}",
        f"written a step    {r['bytes_written_per_step']} bytes",
        f"step              {step}",
    ]
    if r["trained_streams"]:
        guess = "" if r["predicted_step_s"] is not None else " (a guess until `pysmezo doctor` has run here)"
        out.append(f"generations       {mib(r['generation_bytes'])} every {r['generation_every']} steps{guess}")
    if r["budget_bytes"] is not None:
        out.append(
            f"smallest budget   {r['smallest_budget_bytes']} bytes ({r['smallest_budget_bytes'] / 2**20:.1f} MiB)"
        )
    return out
