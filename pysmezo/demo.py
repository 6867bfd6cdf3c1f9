"""The demo's fixed choices, and its prepared folder.

Everything that tunes the demo is in this file. Preparing runs in a child (_prepare.py), so that its memory is not the
training process's.
"""

from __future__ import annotations

import os

from . import children
from .errors import ArgumentError

# Raised when preparing the same packages would write other files.
PREPARED_VERSION = 1
# Examples of each part, half of each class.
SPLITS = {"train": 1000, "dev": 500, "test": 500}
# MeZO's own prompt for sentiment. The model starts near chance with it (better prompts start high), so learning shows.
TASK = {"template": "{text} It was", "label_words": [" terrible", " great"], "label_column": "label"}
# Flags of `train`.
DEFAULTS = {
    "method": "sparse-mezo",
    "sparsity": 0.75,
    # Tuned on dev. lr="auto" takes less than half of it: its constant is one that dense MeZO survives as well.
    "lr": 0.00019546093,
    "eps": 1.6e-3,
    "steps": 1000,
    "batch": 16,
    "schedule": "linear",
    "eval_every": 100,
}


def prepare(folder) -> dict[str, str]:
    """Makes the folder unless it is there already, whole and by this version; the paths in it, as flags of `train`."""
    folder = os.path.abspath(folder)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise ArgumentError(f"[demo] {folder} is a file, expected a folder to write into")
    children.run("_prepare", [folder])
    paths = {"model": "model", "train": "train.jsonl", "dev": "dev.jsonl", "eval": "test.jsonl", "task": "task.yaml"}
    return {flag: os.path.join(folder, name) for flag, name in paths.items()}


def default_folder() -> str:
    return os.path.join(".demo", f"v{PREPARED_VERSION}")
