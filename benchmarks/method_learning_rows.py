"""The rows of METHODS that benchmarks.method_learning runs: which, over which base, and how long."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from . import common, learning, learning_data

# See the docstring of benchmarks.method_learning for why these.
NAMED = ("sparse-mezo", "sensitive", "lozo", "fzoo")
CONTROLS = ("mezo", "random-mask")
COMPARED = (*CONTROLS, *NAMED)  # in the order of running: the reference first
MORE = ("mezo", "sensitive")  # of more seeds
TASKS = {"rt": "demo task", "trec": "TREC"}
NAMES = {
    "mezo": "MeZO",
    "random-mask": "RandomMask(0.75)",
    "sparse-mezo": "SparseMeZO(0.75)",
    "sensitive": "Sensitive(fraction=0.001) over NF4",
    "lozo": "LOZO",
    "fzoo": "FZOO(8 queries)",
}
FIELDS = {"random-mask": {"sparsity": 0.75}, "sparse-mezo": {"sparsity": 0.75}, "fzoo": {"queries": 8}}
OVER_NF4 = ("sensitive",)
LEAST_CURVED_EPS = 0.0101  # bf16 products: HiZOO refuses less than 0.01
# What of a row says how it perturbs: rows that agree in it see the same probes. HiZOO's z / sqrt(h) is z before the
# first step.
DIRECTION = "noise trains mask sparsity index_set fraction low_rank rank refresh drop".split()


@dataclass(frozen=True)
class Sizes:
    """Forwards of a batch: of the compared runs and between their looks at dev, of tuning, of the other rows and
    between theirs; seeds, and those that MORE has in all."""

    forwards: int = 1200
    look: int = 100
    tune: int = 400
    other: int = 600
    other_look: int = 200
    seeds: int = 5
    more_seeds: int = 10


FULL, TRIAL = Sizes(), Sizes(forwards=60, look=10, tune=20, other=40, other_look=20, seeds=2, more_seeds=3)


class Work(learning.Work):
    """Rows done, the clock, the data. A trial's rows and runs lie in the cache, apart from the real ones."""

    def __init__(self, demo: Path, minutes: float, trial: bool = False):
        self.trial, self.sizes = trial, TRIAL if trial else FULL
        super().__init__(demo, minutes, file_of(trial), "tokens-trial" if trial else "tokens")

    def folder(self, *parts: str) -> Path:
        return common.cache_dir("methods-trial" if self.trial else "methods", *parts)


def file_of(trial: bool) -> str:
    """The file of rows, as common.rows takes it."""
    return str(common.cache_dir("methods-trial") / "rows.jsonl") if trial else "method_learning.jsonl"


def others() -> tuple[str, ...]:
    from pysmezo.methods import METHODS

    return tuple(name for name in METHODS if name not in COMPARED)


def label(name: str) -> str:
    from pysmezo.methods import METHODS

    return NAMES.get(name) or METHODS[name].__name__


def method_of(work: Work, name: str):
    from pysmezo.methods import METHODS

    fields = FIELDS.get(name, {})
    if name == "sensitive" and "index" in (base := nf4(work)):
        fields = {"index": str(work.folder() / base["index"])}
    return METHODS[name](**fields)


def base_of(work: Work, name: str) -> Path | None:
    """The model folder that a row trains over; None: the demo's."""
    return work.folder() / nf4(work)["folder"] if name in OVER_NF4 else None


def fields_of(method) -> dict:
    """The method as rows hold it, without a path of this machine."""
    fields = method.to_dict()
    return fields | ({"index": Path(fields["index"]).name} if fields.get("index") else {})


def direction(method, over: str) -> str:
    parts = method.parts()
    return " ".join([over, *(f"{k}={parts[k]}" for k in DIRECTION if k in parts)])


# ----------------------------------------------------------------------------------------------------- the NF4 base


def nf4(work: Work) -> dict:
    """{folder, index: names in the cache, calibration}: block weights in NF4, with the originals of the calibrated
    index set; without torch a random set, and nothing kept. Made once; a row says which it was."""
    model = str(work.demo / "model")

    def make():
        why = _no_calibration()
        made = {"folder": "nf4"} if why else {"folder": "nf4-kept", "index": "index.safetensors"}
        out, keep = work.folder() / made["folder"], []
        if not why:
            index = work.folder() / made["index"]
            text = ["--data", str(learning_data.calibration_text())]
            _pysmezo(index, "sensitivity", "--model", model, *text, "--out", str(index))
            keep = ["--keep", str(index)]
        _pysmezo(out, "quantize", "--model", model, "--dtype", "nf4", *keep, "--out", str(out))
        return made | {"calibration": f"none: {why}, a random set" if why else "WikiText-2, 32 x 256 tokens"}

    made = work.piece("base/nf4", make)
    if any(not (work.folder() / made[k]).exists() for k in ("folder", "index") if k in made):
        again = make()  # the row is another machine's, or the cache was emptied
        if not again.items() <= made.items():
            raise RuntimeError(f"[base/nf4] {again} made here, expected {made}: install torch, or remove the row")
    return made


def _no_calibration() -> str:
    """Why no index file can be calibrated here; "" if one can."""
    from importlib.util import find_spec

    from pysmezo.cli import VERBS

    if "sensitivity" not in VERBS or not find_spec("pysmezo.verbs.sensitivity"):
        return "no verb sensitivity"
    return "" if find_spec("torch") else "no torch"


def _pysmezo(out: Path, *arguments: str) -> None:
    """Runs a verb whose output, which appears whole or not at all, is not there yet."""
    if not out.exists():
        subprocess.run([sys.executable, "-m", "pysmezo", *arguments], cwd=common.ROOT, check=True, stdout=sys.stderr)
