"""The verbs demo, train and resume: one training session each, told on the terminal and as JSON."""

from __future__ import annotations

import math
import os
import sys

from .. import demo, options
from ..cli import INTERRUPTED, OK
from ..progress import Progress, WorkProgress, clock, mib, survival
from ..session import RUN_FILE, Session, free_run_dir, read_run, resumed

RESUME_OPTIONS = ("run_dir", "threads", "memory_budget", "cached_reads")


def add_flags(parser, verb: str) -> None:
    if verb == "resume":
        options.add_flags(parser, RESUME_OPTIONS)
        return
    parser.add_argument("--config", metavar="F.yaml", help="flags as YAML; flags on the command line win")
    if verb == "demo":
        parser.add_argument(
            "--prepare", metavar="DIR", help="only write model/ train.jsonl dev.jsonl test.jsonl task.yaml there"
        )
    options.add_flags(parser)


def run(arguments, verb: str):
    given = dict(vars(arguments))
    given.pop("json")
    if verb == "resume":
        options.require(given, "run_dir")
        given = {k: options.converted(o.convert, v, o.flag) for k, v in given.items() for o in [options.BY_NAME[k]]}
        settings, method, verb = resumed(given.pop("run_dir"), given)
        return _train(settings, method, verb)
    defaults = {}
    if verb == "demo":
        folder = given.pop("prepare")
        if folder is not None:
            return OK, {"folder": os.path.abspath(folder), **demo.prepare(folder)}
        say(f"preparing model and data in {demo.default_folder()}")
        defaults = {**demo.DEFAULTS, **demo.prepare(demo.default_folder())}
    config = given.pop("config")
    settings, method = options.settings({**(options.read_config(config) if config else {}), **given}, defaults)
    options.require(settings, "model", "train", "task")
    if settings["run_dir"] is None:
        settings["run_dir"] = free_run_dir(verb)
    return _train(settings, method, verb)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _train(settings: dict, method, verb: str):
    go_on = f"; go on: pysmezo resume --run-dir {settings['run_dir']}"
    try:
        interrupted, result = Session(
            settings, method, verb, (Progress(),), say, lambda: WorkProgress("evaluate", "example")
        ).train()
        picture = _picture(result["run_dir"])
    except KeyboardInterrupt:
        there = os.path.exists(os.path.join(settings["run_dir"], RUN_FILE))
        raise KeyboardInterrupt(go_on if there else "") from None
    print(summary(result, read_run(result["run_dir"]), picture), flush=True)
    if interrupted:
        say(f"interrupted after step {result['steps']} of {settings['steps']}, all saved{go_on}")
    return (INTERRUPTED if interrupted else OK), result


def _picture(run_dir: str) -> str:
    from ..errors import PysmezoError
    from ..report import draw

    try:
        return draw(run_dir)
    except PysmezoError as e:
        return f"none: {e}"


def summary(r: dict, run: dict, picture: str) -> str:
    """The result for people, a fact a line."""

    def change(name: str, digits: int) -> str:
        before, after = (("-" if v is None else f"{v:.{digits}f}") for v in (r[f"{name}_before"], r[f"{name}_after"]))
        return f"{before} -> {after}"

    lines = []
    if r["accuracy_before"] is not None or r["accuracy_after"] is not None:
        lines += [
            f"accuracy             {change('accuracy', 3)}",
            f"accuracy calibrated  {change('accuracy_calibrated', 3)}",
            f"AUC                  {change('auc', 3)}",
            f"loss                 {change('loss', 4)}",
        ]
    if r["delta_path"] and r["accuracy_after"] is not None and not math.isfinite(r["loss_after"] or 0.0):
        lines.append("                     not finite: the run diverged; a smaller lr or eps keeps it from that")
    skipped = "" if not r["steps_skipped"] else f", {r['steps_skipped']} skipped: their loss was not finite"
    rate = r["steps"] / r["train_seconds"] if r["train_seconds"] else 0.0
    peak, at_open = r["peak_rss_bytes"], r["rss_at_open_bytes"]
    lines += [
        f"steps                {r['steps']} in {clock(r['train_seconds'])} ({rate:.2f} steps/s){skipped}",
        f"memory               process = {mib(at_open)} at open + {mib(max(0, peak - at_open))}, peak {mib(peak)}",
    ]
    d = run["diagnostics"]
    trained, of = d["n_trained"] / 1e6, d["n_parameters"] / 1e6
    lines += [
        f"trained              {trained:.1f} M of {of:.1f} M weights, lr {run['lr']:.3g}, eps {run['eps']:.3g}",
        f"perturbation         {survival(d['surviving_perturbation'])}",
    ]
    if r["delta_path"]:
        lines.append(f"delta                {r['delta_path']} ({mib(r['delta_bytes'])})")
    return "\n".join([*lines, f"picture              {picture}"])
