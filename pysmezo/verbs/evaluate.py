"""The verb eval: accuracy and loss of a base, of a base with a delta, or of a run at its journal's tail."""

from __future__ import annotations

import os
import tempfile

from .. import data, options
from ..cli import OK
from ..errors import ArgumentError
from ..methods.mezo import LEAST
from ..progress import WorkProgress
from ..session import JOURNAL_FILE, open_runtime, resumed

OPTIONS = (
    "model",
    "delta",
    "run_dir",
    "task",
    "batch",
    "max_length",
    "truncate",
    "threads",
    "dtype",
    "memory_budget",
    "cached_reads",
    "method",
)


def add_flags(parser, verb: str) -> None:
    parser.add_argument("--config", metavar="F.yaml", help="flags as YAML; flags on the command line win")
    parser.add_argument("--data", metavar="F", required=True, help="labelled data, .jsonl or .csv")
    options.add_flags(parser, OPTIONS, with_fields=True)


def _opened(settings: dict, method, run_dir):
    if run_dir is None:
        return open_runtime(settings, method, None)
    from ..runtime import Runtime

    # Only reads: the run may be another user's, or go on in another process meanwhile.
    return Runtime.from_journal(
        settings["model"],
        os.path.join(run_dir, JOURNAL_FILE),
        index=getattr(method, "index", None),
        **{name: settings[name] for name in ("delta", "memory_budget", "cached_reads", "threads")},
    )


def run(arguments, verb: str):
    given = dict(vars(arguments))
    given.pop("json")
    source, config = given.pop("data"), given.pop("config")
    given = {**(options.read_config(config) if config else {}), **given}
    asks_method = "method" in given or any(name in given for name in options.method_fields())
    if "index" in given or "fraction" in given:
        given.setdefault("method", "sensitive")
    # Evaluation asks no direction of the method; a delta brings its own, and without one nothing of the base is copied.
    bare = not asks_method and given.get("delta") is None
    settings, method = options.settings(given, {"method": LEAST.name} | ({"trains": LEAST.trains} if bare else {}))
    run_dir = settings["run_dir"]
    if run_dir is not None:
        if settings["delta"] is not None:
            raise ArgumentError(
                "[eval] --delta and --run-dir, expected one of them: a run folder is its own change to the base"
            )
        if asks_method:
            raise ArgumentError("[eval] a method and --run-dir, expected one of them: the run has its own")
        kept = {name: settings[name] for name in given if name != "run_dir"}
        settings, method, _ = resumed(run_dir, kept)
    options.require(settings, "model", "task")
    with tempfile.TemporaryDirectory(prefix="pysmezo-") as folder:
        sets = data.tokenize(
            settings["model"],
            options.path(source),
            settings["task"],
            f"{folder}/tokens.ids",
            settings["max_length"],
            settings["truncate"],
        )
        with _opened(settings, method, run_dir) as runtime:
            from ..trainer import evaluate

            found = evaluate(runtime, sets, settings["batch"], progress=WorkProgress("evaluate", "example"))
    print(f"accuracy {found.accuracy:.4f}, loss {found.loss:.4f}, {found.n_examples} examples")
    extra = (("calibrated", found.accuracy_calibrated), ("AUC", found.auc))
    print(", ".join(f"{name} {value:.4f}" for name, value in extra if value is not None), flush=True)
    return OK, {"accuracy": found.accuracy, "loss": found.loss, "n_examples": found.n_examples}
