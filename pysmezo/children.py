"""Child processes, both sides: how one is started in the same package, and how its errors become ours.

A child prints what it found on standard output and, when it failed, `Type: [where] message` as the last line of
standard error, exit code 2.
"""

from __future__ import annotations

import os
import subprocess
import sys

from . import errors
from .errors import PysmezoError, io_error


def environment() -> dict:
    """The environment in which a child finds this same package, installed or not."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": root + (os.pathsep + path if path else "")}


def raise_error(stderr: str, code: int, what: str):
    """Turns a child's last line into that error here."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    name, _, message = (lines[-1] if lines else "").partition(": ")
    kind = getattr(errors, name, None) if name in errors.__all__ else None
    if kind is not None:
        raise kind(message)
    tail = lines[-1] if lines else "it said nothing"
    raise PysmezoError(f"[{what}] the child process ended with code {code}, expected 0; its last line: {tail}")


def run(module: str, arguments: list[str]) -> str:
    """Runs `python -m pysmezo.<module>` to its end and returns what it printed. Raises what it raised."""
    done = subprocess.run(
        [sys.executable, "-m", f"pysmezo.{module}", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode != 0:
        raise_error(done.stderr, done.returncode, module.lstrip("_"))
    return done.stdout


def main(body, what: str) -> int:
    """The child's side: its exit code, after body()."""
    try:
        body()
    except PysmezoError as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
        return 2
    except OSError as e:
        print(f"IoError: {io_error(what, e)}", file=sys.stderr)
        return 2
    except MemoryError as e:
        print(f"IoError: [{what}] {str(e) or type(e).__name__}", file=sys.stderr)
        return 2
    return 0
