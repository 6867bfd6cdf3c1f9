"""What a training process holds over time: a run is watched from outside, and what is resident is told apart by purpose.

The watched process reports when it opens the model and what its engine counts (_measure.py); this one reads the
system's account of it, so that neither a thread nor a list of samples adds to what is measured. The rows, in order of time:

- run: what was asked and planned
- sample: resident bytes by kind and the peak so far, with the phase (starting, opening, step k)
- opening: the model is about to be opened; the peak counts from here
- held: the end of a phase, with what the engine counts then and, for a step, what it took
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time

from . import children, memory
from .errors import ArgumentError, PysmezoError

INTERVAL_S = 0.02
WHERE = "bench memory"
AT_OPEN, MAPPED, OPENING, OTHER, UNKNOWN = (
    "process at open",
    "mapped base",
    "opening",
    "other",
    "not accounted for",
)
STARTING = "starting"
RESIDENT = tuple(memory.resident())  # names


class Sampler(threading.Thread):
    """Reads what a process holds until it is told to stop or the process is gone."""

    def __init__(self, process: int, cgroup: str | None):
        super().__init__(daemon=True)
        self._process, self._cgroup, self._stop_now = process, cgroup, threading.Event()
        self.rows: list[dict] = []

    def _sample(self) -> dict | None:
        row = {"type": "sample", "at": time.monotonic(), **memory.resident(self._process)}
        if not row["peak_rss_bytes"]:
            return None
        if self._cgroup is not None:
            try:
                with open(self._cgroup) as f:
                    row["cgroup_bytes"] = int(f.read())
            except (OSError, ValueError):
                self._cgroup = None
        return row

    def run(self) -> None:
        while not self._stop_now.is_set():
            if (row := self._sample()) is not None:
                self.rows.append(row)
            self._stop_now.wait(INTERVAL_S)

    def stop(self) -> None:
        self._stop_now.set()
        self.join()


def watch(run: dict, child: dict, samples_path: str, on_row=lambda row: None) -> list[dict]:
    """Runs the measured child to its end and returns the rows, also written to `samples_path`, whole or not.

    run: the first row. child: what _measure.py takes. on_row: called with each row the child tells, as it comes. The
    child's errors become ours.
    """
    if not memory.resident()["peak_rss_bytes"]:
        raise ArgumentError(f"[{WHERE}] /proc does not say what a process holds, expected Linux")
    cgroup = memory.cgroup_file()
    told: list[dict] = []
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "pysmezo._measure", json.dumps(child)],
            env=children.environment(),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
        )
        sampler = Sampler(process.pid, cgroup)
        sampler.start()
        try:
            for line in process.stdout:
                if line.endswith("\n"):  # else it was killed in the middle of it
                    told.append(json.loads(line))
                    on_row(told[-1])
            code = process.wait()
        finally:
            process.kill()  # an interrupt; nothing where it has ended
            process.wait()
            process.stdout.close()
            sampler.stop()
            head = {"type": "run", "at": begin, "cgroup": cgroup, **run}
            rows = in_order(head, told, sampler.rows)
            write(samples_path, rows)
        if code:
            errors.seek(0)
            _raise(code, errors.read(), rows, samples_path)
    return rows


def _raise(code: int, stderr: str, rows: list[dict], samples_path: str):
    if code > 0:
        children.raise_error(stderr, code, WHERE)
    last = [r for r in rows if r["type"] == "sample"][-1:]
    at = f" at {resident_bytes(last[0]) >> 20} MiB in {last[0]['phase']}" if last else ""
    raise PysmezoError(
        f"[{WHERE}] the run was killed by signal {-code}{at}, expected it to end by itself; with signal 9 the system or a "
        f"limit on memory did it; samples: {samples_path}"
    )


def resident_bytes(sample: dict) -> int:
    return sample["rss_anon_bytes"] + sample["rss_file_bytes"] + sample["rss_shmem_bytes"]


def in_order(head: dict, told: list[dict], samples: list[dict]) -> list[dict]:
    """All rows by time, "s": seconds since the first; each sample with the phase it fell into. What the child told of itself
    is a sample too.
    """
    own = [{k: row[k] for k in ("at", *RESIDENT)} | {"type": "sample"} for row in told]
    rows = [head, *sorted([*own, *told, *samples], key=lambda r: r["at"])]
    phase, out = STARTING, []
    for row in rows:
        row = dict(row)
        row["s"] = round(row.pop("at") - head["at"], 6)
        if row["type"] == OPENING:
            phase = OPENING
        elif row["type"] == "held":
            step = 0 if row["phase"] == OPENING else int(row["phase"].split()[1])
            phase = f"step {step + 1}" if step < head["steps"] else None
        elif row["type"] == "sample":
            if phase is None:  # the run is being closed
                continue
            row["phase"] = phase
        out.append(row)
    return out


def write(path: str, rows: list[dict]) -> None:
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)


def read(path: str) -> list[dict]:
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


# ---- by purpose


def counted(rows: list[dict]) -> dict[str, dict[str, int]]:
    """By phase: what the engine counted at its end, the ring by as much of it as a step is planned to touch."""
    touched = rows[0]["planned"]["bytes_by_purpose"]["ring"]
    out = {}
    for row in rows:
        if row["type"] == "held":
            found = dict(row["bytes_by_purpose"])
            out[row["phase"]] = found | {"ring": min(found["ring"], touched)}
    return out


def at_open(rows: list[dict]) -> int:
    """Resident bytes when the model was opened; 0 where it was not."""
    return next((r["rss_at_open_bytes"] for r in rows if "rss_at_open_bytes" in r), 0)


def purposes(rows: list[dict]) -> list[tuple[dict, dict[str, int]]]:
    """(sample, bytes by purpose) for every sample. The purposes add up to what was resident.

    What the engine counts at the end of a phase is taken as far as anonymous memory has grown: a buffer that is counted is
    not yet touched. Pages of files are the mapped base as far as one is planned. The rest of the growth is scratch while
    the model is opened, and later the allowance that the plan calls "other". What not even that covers is not accounted
    for.
    """
    found, before = counted(rows), at_open(rows)
    mapped = rows[0]["planned"]["bytes_by_purpose"][MAPPED]
    opening = next((r for r in rows if r["type"] == OPENING), None)
    out = []
    for row in rows:
        if row["type"] != "sample":
            continue
        resident, phase = resident_bytes(row), row["phase"]
        if phase == STARTING or not before:
            out.append((row, {AT_OPEN: resident}))
            continue
        # A run that ended early told nothing of its last phase.
        held = dict(found.get(phase) or list(found.values())[-1])
        allowance = held.pop(OTHER)
        if phase == OPENING:  # the ring comes late in it, after other scratch
            held.pop("ring")
        grown = max(0, row["rss_anon_bytes"] - opening["rss_anon_bytes"])
        parts = {AT_OPEN: 0}
        for name, n in held.items():
            parts[name] = min(n, grown)
            grown -= parts[name]
        parts[MAPPED] = min(mapped, max(0, _files(row) - _files(opening)))
        parts[AT_OPEN] = min(before, resident - sum(parts.values()))
        rest = resident - sum(parts.values())
        name, limit = (OPENING, rest) if phase == OPENING else (OTHER, allowance)
        parts |= {name: min(rest, limit), UNKNOWN: max(0, rest - limit)}
        out.append((row, parts))
    return out


def _files(row: dict) -> int:
    return row["rss_file_bytes"] + row["rss_shmem_bytes"]
