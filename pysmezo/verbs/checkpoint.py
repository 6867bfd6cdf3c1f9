"""The verbs replay, fork, merge and export: what a run or a delta is for others, and for another try."""

from __future__ import annotations

import os
import time

from .. import _core, metrics, options
from ..cli import OK
from ..errors import ArgumentError
from ..memory import peaks
from ..methods import RandomMask, described_by_delta
from ..progress import WorkProgress, mib
from ..session import JOURNAL_FILE, RUN_FILE, base_bytes, read_run, write_run

# What a model larger than memory is read within when no budget is named.
DEFAULT_BUDGET = "1GiB"


def add_flags(parser, verb: str) -> None:
    def path(flag: str, help: str, required: bool = True) -> None:
        parser.add_argument(flag, metavar="X", type=options.path, required=required, help=help)

    if verb == "fork":
        path("--run-dir", "run folder to begin from, which stays as it is")
        parser.add_argument("--at", metavar="N", required=True, help="its last step that the new run has")
        path("--out", "new run folder")
        return
    path("--model", "model folder, the base")
    if verb == "replay":
        path("--journal", "journal of a run (journal.smz), or its run folder")
        parser.add_argument("--to", metavar="N", help="step (default: the last)")
        path("--delta", "delta that the run began with", required=False)
        path("--out", "new delta, .safetensors")
    else:
        path("--delta", "delta, as train or replay wrote it")
        path("--out", "new folder")
    path("--index", "index file that the run was made with, where it had one", required=False)
    if verb == "merge":
        parser.add_argument("--dtype", metavar="bf16|fp32", default="bf16", help="of the new weights (bf16)")
    if verb == "export":
        parser.add_argument("--peft", action="store_true", help="a SHiRA adapter, as PEFT loads it")
    options.add_flags(parser, ("threads", "memory_budget"))


def run(arguments, verb: str):
    return {"replay": replay, "fork": fork, "merge": merge, "export": export}[verb](arguments)


def _given(a, name: str):
    """An option of the table, converted; None where it was not given."""
    o, value = options.BY_NAME[name], getattr(a, name, None)
    return None if value is None else options.converted(o.convert, value, o.flag)


def _refuse_existing(path: str, verb: str) -> None:
    if os.path.exists(path):
        raise ArgumentError(f"[{verb}] {path} is already there, expected a name that is free")


def replay(a):
    from ..runtime import Runtime

    _refuse_existing(a.out, "replay")
    to = None if a.to is None else options.converted(options.at_least(0), a.to, "--to")
    journal = os.path.join(a.journal, JOURNAL_FILE) if os.path.isdir(a.journal) else a.journal
    begin = time.monotonic()
    where = {"index": a.index, "delta": a.delta, "threads": _given(a, "threads")}
    with Runtime.from_journal(
        a.model, journal, to, memory_budget=_given(a, "memory_budget") or DEFAULT_BUDGET, **where
    ) as run:
        n_bytes, step = run.save_delta(a.out), run.step
        trained = run._engine.n_trained
    seconds = time.monotonic() - begin
    print(f"{a.out}: the delta of step {step}, {mib(n_bytes)}, in {seconds:.1f} s", flush=True)
    return OK, {
        "step": step,
        "delta_path": a.out,
        "delta_bytes": n_bytes,
        "n_trained": trained,
        "seconds": seconds,
        "peak_rss_bytes": peaks()[0],
    }


def fork(a):
    at = options.converted(options.at_least(1), a.at, "--at")
    source = os.path.join(a.run_dir, JOURNAL_FILE)
    if not os.path.exists(source):
        raise ArgumentError(f"[fork] {a.run_dir} holds no {JOURNAL_FILE}, expected a run folder")
    content = read_run(a.run_dir) if os.path.exists(os.path.join(a.run_dir, RUN_FILE)) else None
    _refuse_existing(a.out, "fork")
    os.makedirs(a.out)
    try:
        _core.fork_journal(source, os.path.join(a.out, JOURNAL_FILE), at)
    except Exception:
        os.rmdir(a.out)
        raise
    if content is not None:
        for key in ("result", "after", "diagnostics"):
            content.pop(key, None)
        content["settings"]["run_dir"] = a.out
        content["forked_from"] = {"run_dir": a.run_dir, "step": at}
        write_run(a.out, content)
        writer = metrics.Writer(a.out, 0)
        for line in metrics.lines(a.run_dir):
            if line.get("step", 0) <= at:
                writer.write(line)
        writer.close()
    how = f"; go on: pysmezo resume --run-dir {a.out}" if content is not None else ""
    print(f"{a.out}: the run of {a.run_dir} up to step {at}{how}", flush=True)
    return OK, {"run_dir": a.out, "step": at}


def _opened(a):
    from ..runtime import Runtime

    method = None
    found = described_by_delta(a.delta)
    if a.index is not None:
        from ..methods import Sensitive

        method = Sensitive(index=a.index)
    # The values of a random mask are scattered into copies of whole weights, which a budget has no room for.
    budget = None if found["method"] == RandomMask.name else DEFAULT_BUDGET
    return Runtime.from_pretrained(
        a.model, method=method, lr=1.0, eps=1.0, delta=a.delta, values=found["values"], threads=_given(a, "threads"),
        memory_budget=_given(a, "memory_budget") or budget,
    )  # fmt: skip


def merge(a):
    begin = time.monotonic()
    with _opened(a) as run:
        n_bytes = run.merge(a.out, a.dtype, WorkProgress("merge"))
    seconds = time.monotonic() - begin
    print(f"{a.out}: a model folder of {mib(n_bytes)} in {a.dtype}, in {seconds:.1f} s", flush=True)
    return OK, {"out": a.out, "bytes_out": n_bytes, "seconds": seconds, "peak_rss_bytes": peaks()[0]}


def export(a):
    if not a.peft:
        raise ArgumentError("[export] no target, expected --peft")
    with _opened(a) as run:
        found = run.export_peft(a.out)
    base = base_bytes(a.model)
    print(
        f"{a.out}: a SHiRA adapter of {len(found['modules'])} modules, {found['n_values']} values, {mib(found['bytes_out'])}",
        flush=True,
    )
    if found["bytes_out"] > base:
        print(
            f"note: it is larger than the model ({mib(base)}): PEFT keeps 12 bytes a value; `pysmezo merge` writes "
            "a whole model",
            flush=True,
        )
    return OK, {**found, "modules": len(found["modules"]), "out": a.out}
