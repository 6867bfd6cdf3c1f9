"""metrics.jsonl of a run folder: StepResult's fields and those of signals.py a line; lines of another kind have a "type" (eval). A sitting's
first step and evaluations also have surviving_perturbation (Runtime.diagnostics).

The journal, not this file, is the run: lines past the journal's tail are dropped when the run is opened again.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator

from .errors import io_error

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


def files(run_dir) -> list[str]:
    """Those there are, oldest first: full ones are numbered, the newest is NAME."""
    try:
        names = os.listdir(run_dir)
    except FileNotFoundError:
        return []
    numbered = sorted(n for n in names if n != NAME and is_name(n))
    return [os.path.join(run_dir, n) for n in (*numbered, NAME) if n in names]


def is_name(name: str) -> bool:
    stem, end = os.path.splitext(NAME)
    return re.fullmatch(rf"{stem}(\.\d{{6}})?{end}", name) is not None


def lines(run_dir) -> Iterator[dict]:
    """Every whole line, one at a time: a long run has more than memory should hold. A torn line, as a kill leaves it, is
    left out.
    """
    for path in files(run_dir):
        yield from lines_of(path)


def lines_of(path) -> Iterator[dict]:
    """Of one file."""
    with open(path, "rb") as f:
        for raw in f:
            if (line := _line(raw)) is not None:
                yield line


def _line(raw: bytes) -> dict | None:
    try:
        line = json.loads(raw.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None


def read(run_dir) -> list[dict]:
    """All of them; for each step the last line counts."""
    out: dict = {}
    for n, line in enumerate(lines(run_dir)):
        key = ("other", n) if "type" in line else ("step", line["step"])
        out.pop(key, None)
        out[key] = line
    return list(out.values())


class Writer:
    """Appends lines; a line goes to the system at once. A file of MOST_BYTES gets a number, and a new one begins.

    A file that somebody else moves away, as logrotate does, is let go: lines go on under the name.
    """

    MOST_BYTES = 64 << 20

    def __init__(self, run_dir, step: int):
        """step: the run's last committed step; lines of later ones are dropped."""
        self._run_dir = run_dir
        self._path = os.path.join(run_dir, NAME)
        for path in reversed(files(run_dir)):
            if self._drop_later(path, step):
                break
        self._open()

    @staticmethod
    def _drop_later(path: str, step: int) -> bool:
        """True when the file begins early enough that no older one can have later lines."""
        first, kept, size, ended = None, 0, 0, True
        with open(path, "rb") as f:
            for raw in f:
                size += len(raw)
                if (line := _line(raw)) is None:
                    continue
                first = line["step"] if first is None else first
                if line["step"] <= step:
                    kept, ended = size, raw.endswith(b"\n")
        # In place: a disk that is full has no room for a second file.
        if kept < size:
            os.truncate(path, kept)
        if not ended:
            with open(path, "ab") as f:
                f.write(b"\n")
        return first is not None and first <= step

    def _open(self) -> None:
        self._file = open(self._path, "ab", buffering=0)  # what could not be written is not tried again by close

    def _rotate(self) -> None:
        self._file.close()
        stem, end = os.path.splitext(self._path)
        # Above the highest there is: somebody may have taken lower ones away.
        numbers = (name.removesuffix(end)[-6:] for name in files(self._run_dir) if name != self._path)
        os.replace(self._path, f"{stem}.{max(map(int, numbers), default=0) + 1:06d}{end}")
        self._open()

    def _has_its_name(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))
        except FileNotFoundError:
            return False

    def write(self, line: dict) -> None:
        """IoError: the system took none or only part of it; a torn line is left out by `read`."""
        text = (json.dumps(plain(line)) + "\n").encode()
        left = len(text)
        try:
            if not self._has_its_name():
                self._file.close()
                self._open()
            while left:  # where a part was taken, only the next call says why it was no more
                left -= self._file.write(text[-left:])
            if os.fstat(self._file.fileno()).st_size >= self.MOST_BYTES:
                self._rotate()
        except OSError as e:
            raise io_error("metrics", e, self._path, left or None) from None

    def close(self) -> None:
        self._file.close()
