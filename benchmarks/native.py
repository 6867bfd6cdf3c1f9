"""Runs the C++ benchmark executables of the build folder; they print one JSON object a line."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from . import common


def find(name: str, build: Path | None) -> Path | None:
    """The executable CMake made of target `name`, the newest one below the build folder."""
    found = [f for f in (build or common.ROOT / "build").rglob(name) if f.is_file() and os.access(f, os.X_OK)]
    return max(found, key=lambda f: f.stat().st_mtime, default=None)


def lines(executable: Path, *arguments: str, isa: str | None = None) -> list[dict]:
    environment = {**os.environ, **({"SMEZO_ISA": isa} if isa else {})}
    done = subprocess.run([str(executable), *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def label(row: dict, *keys: str) -> str:
    return " ".join(str(row[k]) for k in keys if k in row)
