"""The command line: verbs as a table, one line for an error, and the exit codes.

0 ok; 2 usage or bad input; 3 does not fit; 130 interrupted after a clean save. A verb's module is imported only when
the verb is used.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from contextlib import contextmanager
from importlib import import_module

from .errors import ArgumentError, BudgetError, PysmezoError, io_error

OK, USAGE, DOES_NOT_FIT, INTERRUPTED = 0, 2, 3, 130

# verb -> (module of pysmezo.verbs, what it does)
VERBS = {
    "demo": ("train", "prepare a model and data, train, evaluate, draw; --prepare DIR only prepares"),
    "train": ("train", "fine-tune a model on labelled data"),
    "resume": ("train", "go on with an interrupted run"),
    "eval": ("evaluate", "accuracy and loss of a model on labelled data"),
    "replay": ("checkpoint", "the delta of any step of a run, from the base and its journal"),
    "fork": ("checkpoint", "a new run that goes on from an earlier step of another"),
    "merge": ("checkpoint", "base and delta as a model folder that any tool reads"),
    "export": ("checkpoint", "a delta as an adapter for PEFT"),
    "plan": ("plan", "what a run would hold, read and take; exit code 3 when it does not fit"),
    "find-lr": (
        "find",
        "measure the lr and eps that auto would take, and draw how; --presets lists what papers publish",
    ),
    "find-eps": ("find", "measure the eps that auto would take"),
    "sensitivity": ("sensitivity", "the elements that matter most on general text, as an index file; takes torch"),
    "quantize": ("quantize", "write a model folder in 4 or 8 bits, as bitsandbytes stores it"),
    "inspect": ("inspect", "explain a file or folder of ours"),
    "doctor": ("doctor", "what this machine and installation can do"),
    "bench": ("bench", "measure; make-model writes a random model to measure with"),
}


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ArgumentError(f"[{self.prog}] {message}; `{self.prog} --help` lists the flags")


def overview() -> str:
    width = max(map(len, VERBS))
    rows = "\n".join(f"  {verb:<{width}}  {what}" for verb, (_, what) in VERBS.items())
    return (
        f"usage: pysmezo VERB ... [--config F.yaml] [--json]\n\n{rows}\n\n`pysmezo VERB --help` lists a verb's flags."
    )


def run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return OK if argv else USAGE
    if argv[0] == "--version":
        from . import __version__

        print(__version__)
        return OK
    verb = argv[0]
    if verb not in VERBS:
        raise ArgumentError(f"[pysmezo] verb {verb!r}, expected one of {', '.join(VERBS)}")
    module = import_module(f".verbs.{VERBS[verb][0]}", __package__)
    parser = Parser(prog=f"pysmezo {verb}", description=VERBS[verb][1], allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line of standard output")
    module.add_flags(parser, verb)
    arguments = parser.parse_args(argv[1:])
    code, result = module.run(arguments, verb)
    if arguments.json:
        from .metrics import plain

        print(json.dumps(plain(result), allow_nan=False), flush=True)
    return code


@contextmanager
def termination_interrupts():
    """SIGTERM ends a command as SIGINT does, unless somebody else has a say in it."""
    own = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if own:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if own:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main(argv=None) -> int:
    try:
        with termination_interrupts():
            return run(sys.argv[1:] if argv is None else list(argv))
    except BudgetError as e:
        code, message = DOES_NOT_FIT, str(e)
    except PysmezoError as e:
        code, message = USAGE, str(e)
    except BrokenPipeError:
        # Whoever read our output has enough (`| head`). Standard output is not flushed again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as e:
        code, message = USAGE, str(io_error("io", e))
    except MemoryError as e:
        code, message = (
            USAGE,
            f"[memory] {str(e) or 'the system gave no more'}, expected enough for this batch and model",
        )
    except KeyboardInterrupt as e:
        code, message = INTERRUPTED, f"[pysmezo] interrupted; what was committed is kept{e}"
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
