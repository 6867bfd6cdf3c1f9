"""metrics.jsonl of a run folder: StepResult's fields a line; lines of another kind have a "type" (eval).

The journal, not this file, is the run: lines past the journal's tail are dropped when the run is opened again.
"""

from __future__ import annotations

import json
import math
import os

from .errors import IoError

NAME = "metrics.jsonl"


def plain(x):
    """JSON has no NaN or infinity: they become null."""
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    if isinstance(x, (list, tuple)):
        return [plain(v) for v in x]
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    return plain(x.item()) if hasattr(x, "item") else x


def read(run_dir) -> list[dict]:
    """Every whole line; a torn last line, as a kill leaves it, is left out. For each step the last line counts."""
    out: dict = {}
    try:
        with open(os.path.join(run_dir, NAME), encoding="utf-8", errors="replace") as f:
            for n, text in enumerate(f):
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError):
                    continue
                if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                    continue
                key = ("other", n) if "type" in line else ("step", line["step"])
                out.pop(key, None)
                out[key] = line
    except FileNotFoundError:
        pass
    return list(out.values())


class Writer:
    """Appends lines; a line goes to the system at once."""

    def __init__(self, run_dir, step: int):
        """step: the run's last committed step; lines of later ones are dropped."""
        path = os.path.join(run_dir, NAME)
        kept = [line for line in read(run_dir) if line.get("step", 0) <= step]
        with open(path + ".tmp", "w", encoding="utf-8") as f:
            f.writelines(json.dumps(line) + "\n" for line in kept)
        os.replace(path + ".tmp", path)
        self._file = open(path, "ab", buffering=0)  # what could not be written is not tried again by close

    def write(self, line: dict) -> None:
        """IoError: the system took none or only part of it; a torn line is left out by `read`."""
        text = (json.dumps(plain(line)) + "\n").encode()
        try:
            n = self._file.write(text)
        except OSError as e:
            n, cause = 0, e.strerror
        else:
            cause = "the disk is full"
        if n < len(text):
            raise IoError(
                f"[metrics] cannot write {self._file.name}: {cause}, expected room; steps that were committed are in the journal, "
                "resume goes on with them"
            )

    def close(self) -> None:
        self._file.close()
