"""What every benchmark shares: interleaved timing, the machine in words, the result object, rows appended to a file,
child processes.

A result is {machine, isa, rows, targets}: rows are measurements by name, targets say {name, target, measured, met}. A
row or target that cannot run here carries `not_run: reason`, never a guess.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vbmi",
    "avx512_bf16",
    "avx512_vnni",
    "amx_tile",
    "amx_bf16",
)


def cache_dir(*parts: str) -> Path:
    """A folder for what a benchmark downloads or makes once; never inside the repository."""
    root = os.environ.get("PYSMEZO_BENCH_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", "~/.cache"), "pysmezo", "bench"
    )
    folder = Path(root).expanduser().joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# -------------------------------------------------------------------------------------------------------------- machine


def machine() -> dict:
    """The machine without its name or any path: processor, cores, flags that matter, last-level cache, memory, load
    before the run."""
    info = {"cpu": "unknown", "cores": len(os.sched_getaffinity(0)), "flags": [], "python": sys.version.split()[0]}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                info["cpu"] = value.strip()
            elif key.strip() == "flags":
                info["flags"] = [f for f in FLAGS if f in value.split()]
        caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
        info["caches"] = [c.read_text().strip() for c in caches]
        total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
        info["memory_gib"] = round(int(total.split()[1]) / 2**20, 1)
    except (OSError, StopIteration):
        pass
    info["load_before"] = round(os.getloadavg()[0], 2)
    return info


def isa() -> str:
    """The instruction set that the extension chose, or `not built`."""
    try:
        from pysmezo import _core
    except ImportError:
        return "not built"
    return _core.numerics_name()


# --------------------------------------------------------------------------------------------------------------- timing


def interleave(
    actions: dict, rounds: int, warmup: int = 1, log=None, give_up_s: float = float("inf")
) -> dict[str, list[float]]:
    """Runs every action once a round, in turn, so that a slow spell of the machine hits all alike; returns seconds by
    name.

    An action may return its own seconds (a child that timed itself); otherwise the call is timed. Stops after the round
    in which `give_up_s` seconds have passed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    begin = time.perf_counter()
    for r in range(-warmup, rounds):
        for name, action in actions.items():
            start = time.perf_counter()
            own = action()
            spent = own if isinstance(own, float) else time.perf_counter() - start
            if r >= 0:
                seconds[name].append(spent)
        if log:
            log(f"round {r + 1} of {rounds}" if r >= 0 else "warm-up")
        if r >= 0 and time.perf_counter() - begin > give_up_s:
            break
    return seconds


def summary(seconds: list[float]) -> dict:
    return {"median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds), "n": len(seconds)}


def target(
    name: str, measured: float | None, at_least: float | None = None, at_most: float | None = None, why: str = ""
) -> dict:
    """One line of the target table. measured None: not run, for the reason `why`."""
    words = f"at least {at_least:g}" if at_least is not None else f"at most {at_most:g}"
    if measured is None:
        return {"name": name, "target": words, "measured": None, "met": None, "not_run": why}
    met = measured >= at_least if at_least is not None else measured <= at_most
    return {"name": name, "target": words, "measured": round(measured, 4), "met": bool(met)}


# -------------------------------------------------------------------------------------------------------------- results


def append(file: str, row: dict) -> None:
    """One finished piece of work, on disk before the next begins; not joined to a torn line before it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / file
    torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with open(path, "a") as out:
        out.write("\n" * torn + json.dumps(row) + "\n")
        out.flush()
        os.fsync(out.fileno())


def rows(file: str) -> list[dict]:
    """Rows present; a torn last line (a run killed while writing) is left out."""
    path = RESULTS / file
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def earlier(file: str, where: dict, isa: str) -> dict[str, dict]:
    """What rows of the file measured on a machine like this one, by row; of one name the newest."""
    same = ("cpu", "cores", "memory_gib")
    return {
        r["row"]: r["measured"]
        for r in rows(file)
        if "row" in r and r["isa"] == isa and all(r["machine"].get(k) == where.get(k) for k in same)
    }


def finish(name: str, result: dict, as_json: bool) -> None:
    """Appends the result to results/NAME.jsonl and shows it."""
    append(f"{name}.jsonl", {"date": datetime.date.today().isoformat(), **result})
    show(result, as_json)


def show(result: dict, as_json: bool) -> None:
    """A table for people, or one JSON object as the last line."""
    if as_json:
        print(json.dumps(result))
        return
    where = result["machine"]
    print(f"\n{where['cpu']}, {where['cores']} cores, {' '.join(where['flags'])}")
    print(f"kernels: {result['isa']}; load before: {where['load_before']}")
    for label, row in result["rows"].items():
        if "not_run" in row:
            print(f"  {label:<58} not run: {row['not_run']}")
        else:
            print(
                f"  {label:<58} "
                + "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            )
    for t in result["targets"]:
        verdict = (
            f"not run: {t['not_run']}"
            if t["measured"] is None
            else f"{t['measured']:.3f}  {'met' if t['met'] else 'MISSED'}"
        )
        print(f"  {t['name']:<58} {t['target']:<14} {verdict}")


# ------------------------------------------------------------------------------------------------------------ processes


class Child:
    """A Python module kept alive and commanded by JSON lines over pipes: torch's memory and threads stay out of this
    process, and while the child waits for its next command it uses no core. Its standard error goes through."""

    def __init__(self, module: str, *args: str, environment: dict | None = None):
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )

    def ask(self, do: str, **arguments) -> dict:
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the child process ended with code {self.process.wait()} while doing {do!r}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"the child process could not do {do!r}: {answer['error']}")
        return answer

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def serve(verbs: dict) -> None:
    """The child's side of `Child`: reads commands until the pipe closes."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for a reply
    for line in sys.stdin:
        command = json.loads(line)
        try:
            reply = verbs[command.pop("do")](**command)
        except Exception as e:  # the parent decides what an error means
            reply = {"error": f"{type(e).__name__}: {e}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def note(text: str) -> None:
    """Progress for whoever watches; standard output is for the result."""
    print(text, file=sys.stderr, flush=True)
