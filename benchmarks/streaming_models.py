"""The models of `benchmarks.streaming`: made when a row needs them, deleted when none does any more; free disk asked
first, and the page cache of their files dropped on demand.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from . import common

SPARE_BYTES = 2 << 30  # of the disk, left alone
LARGE_BYTES = 1 << 30  # of a model that does not stay
BYTES_A_WEIGHT = {"bf16": 2.0, "nf4": 0.5 + 4 / 64, "nf4-dq": 0.5 + 1 / 64 + 4 / (64 * 256)}  # of the blocks' matrices
STATE_BYTES = 3  # of a trained value, bf16+8


class NotRun(Exception):
    """Why a row cannot run here."""


class Spec(NamedTuple):
    """A model of a named shape."""

    shape: str
    dtype: str
    layers: int | None = None  # None: the shape's

    @property
    def name(self) -> str:
        return "-".join([self.shape, *([str(self.layers)] if self.layers else []), self.dtype])

    def _weights(self) -> tuple[int, int]:
        """(weights of the blocks' matrices, the others)."""
        from pysmezo import shapes

        blocks = others = 0
        for name, size in shapes.tensors(shapes.shape_of(self.shape, self.layers)):
            n = size[0] * (size[1] if len(size) == 2 else 1)
            blocks, others = (blocks + n, others) if "_proj" in name else (blocks, others + n)
        return blocks, others

    def n_bytes(self) -> int:
        blocks, others = self._weights()
        return round(blocks * BYTES_A_WEIGHT[self.dtype] + 2 * others)

    def state_bytes(self, density: float) -> int:
        """Of a generation that holds that share of the blocks' matrices."""
        return round(self._weights()[0] * density) * STATE_BYTES


def files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*.safetensors") if f.is_file())


def stored_bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in files(folder))


def drop_cache(*folders: Path) -> None:
    """The pages of every file below the folders leave the page cache, but those that a process maps."""
    for file in (f for folder in folders for f in folder.rglob("*") if f.is_file()):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def disk_rate(folder: Path, block_bytes: int) -> float | None:
    """Bytes a second of reading the folder's weights in order past the page cache, as `pysmezo doctor` measures it, in
    blocks of that many bytes; None where the file system cannot.
    """
    from pysmezo.verbs.doctor import read_rate

    rates = [(f.stat().st_size, read_rate(str(f), block_bytes)) for f in files(folder)]
    rates = [(n, r) for n, r in rates if n >= block_bytes]
    if not rates or not all(r for _, r in rates):
        return None
    return sum(n for n, _ in rates) / sum(n / r for n, r in rates)


class Models:
    """A folder of models. demo: SmolLM2 is the demo's, not one with random weights."""

    def __init__(self, folder: Path, demo: Path | None, keep: bool):
        self.folder, self.demo, self.keep = folder, demo, keep
        self._made: dict[Spec, Path] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def needs(self, n_bytes: int) -> None:
        """NotRun unless so much may be written here."""
        free = shutil.disk_usage(self.folder).free - SPARE_BYTES
        if n_bytes > free:
            raise NotRun(f"needs {n_bytes / 1e9:.1f} GB of disk, {max(0, free) / 1e9:.1f} GB may be used")

    def weights(self, spec: Spec) -> str:
        """Whose the model's weights are."""
        return "demo" if self.demo is not None and (spec.shape, spec.layers) == ("smollm2-135m", None) else "random"

    def path(self, spec: Spec, more_bytes: int = 0) -> Path:
        """The model's folder, made if it is not there. more_bytes: what else the row will write."""
        of_demo = self.weights(spec) == "demo"
        if of_demo and spec.dtype == "bf16":
            self.needs(more_bytes)
            return self.demo / "model"
        out = self.folder / (f"demo-{spec.dtype}" if of_demo else spec.name)
        if (out / "config.json").exists():
            self.needs(more_bytes)
            return out
        self.needs(spec.n_bytes() + more_bytes)
        common.note(f"making {out}")
        if of_demo:
            arguments = ["quantize", "--model", str(self.demo / "model"), "--dtype", spec.dtype]
        else:
            arguments = ["bench", "make-model", "--shape", spec.shape, "--dtype", spec.dtype]
            arguments += ["--layers", str(spec.layers)] if spec.layers else []
        done = subprocess.run(
            [sys.executable, "-m", "pysmezo", *arguments, "--out", str(out)],
            cwd=common.ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise NotRun((done.stderr.splitlines() or ["no reason given"])[-1])
        self._made[spec] = out
        return out

    def temporary(self) -> tempfile.TemporaryDirectory:
        """A folder on the same disk."""
        return tempfile.TemporaryDirectory(prefix="row-", dir=self.folder)

    def let_go(self, needed: set[Spec]) -> None:
        """Deletes the large models that were made here and that no later row needs."""
        for spec in [s for s in self._made if s not in needed]:
            folder = self._made.pop(spec)
            if not self.keep and stored_bytes(folder) >= LARGE_BYTES:
                shutil.rmtree(folder)


def copy(model: Path, to: Path) -> Path:
    """A copy that nobody maps: its pages can be dropped, also while another process maps the original."""
    out = Path(shutil.copytree(model, to / "model"))
    for file in files(out):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)  # dirty pages cannot be dropped
        os.close(handle)
    return out
