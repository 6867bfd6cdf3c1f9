"""The verb eval: accuracy and loss of a base, of a base with a delta, or of a run at its journal's tail."""

from __future__ import annotations

import tempfile

from .. import data, options
from ..cli import OK
from ..errors import ArgumentError
from ..methods import MeZO
from ..session import open_runtime, resumed

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
    parser.add_argument("--data", metavar="F", required=True, help="labelled data, .jsonl or .csv")
    options.add_flags(parser, OPTIONS, with_fields=True)


def run(arguments, verb: str):
    given = dict(vars(arguments))
    given.pop("json")
    source = given.pop("data")
    asks_method = "method" in given or any(name in given for name in options.method_fields())
    if "index" in given or "fraction" in given:
        given.setdefault("method", "sensitive")
    settings, method = options.settings(given)
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
    elif not asks_method:
        # Evaluation asks no direction of the method; a delta brings its own.
        method = MeZO() if settings["delta"] is None else None
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
        with open_runtime(settings, method, run_dir) as runtime:
            from ..trainer import evaluate

            found = evaluate(runtime, sets, settings["batch"])
    print(f"accuracy {found.accuracy:.4f}, loss {found.loss:.4f}, {found.n_examples} examples")
    extra = [f"calibrated {found.accuracy_calibrated:.4f}"] + ([] if found.auc is None else [f"AUC {found.auc:.4f}"])
    print(", ".join(extra), flush=True)
    return OK, {"accuracy": found.accuracy, "loss": found.loss, "n_examples": found.n_examples}
