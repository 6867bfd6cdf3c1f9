"""report.png of a run folder, drawn from metrics.jsonl by a child process: this one never imports matplotlib."""

from __future__ import annotations

import os

from . import children

NAME = "report.png"


def draw(run_dir, out=None) -> str:
    """The picture's path. ArgumentError: matplotlib is not installed, or no step was taken yet."""
    out = os.path.join(run_dir, NAME) if out is None else out
    children.run("_draw", [str(run_dir), str(out)])
    return str(out)
