"""`python -m benchmarks.kills [--demo DIR] [--kills 250] [--only resident|streamed]`: training that is killed again and
again.

A run of SmolLM2 (random weights without --demo) with SparseMeZO is killed with SIGKILL at random moments, a quarter of
them while it opens, and opened anew, until it has been killed 50 times; then it trains three steps more, and another
run begins. With everything in memory, and within a budget, where a generation is written every other step. After every
kill the journal must hold every step that was acknowledged and begin with the bytes that it held before; at the end
records and weights must be those of a run that nobody disturbed. Seconds to reopen are those from the start of the
process to its first new step.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import batches, common
from .streaming_child import one_label
from .streaming_models import Models, NotRun, Spec

MIB = 1 << 20
METHOD = {"kind": "sparse-mezo", "sparsity": 0.75}
LR, EPS = 1e-6, 1e-3
PLACEMENTS = {
    "resident": {},
    "streamed": {"memory_budget": 96 * MIB, "stream_trained": True, "generation_every": 2},
}
REOPEN_AT_MOST_S = 60
KILLS_A_RUN = 50


def train(model: str, run_dir: str, placement: str, until: int | None = None) -> None:
    """In a process of its own: says every step once it is committed; with `until`, ends there and saves the delta."""
    from pysmezo import Runtime
    from pysmezo.methods import from_dict

    vocab = json.loads((Path(model) / "config.json").read_text())["vocab_size"]
    options = {"lr": LR, "eps": EPS, "seed": 5, "threads": 2} | PLACEMENTS[placement]
    with Runtime.from_pretrained(model, method=from_dict(METHOD), run_dir=run_dir, **options) as run:
        while run.step != until:
            ids = batches.unpadded(vocab, 4, 14, seed=run.step)["input_ids"]
            print(run.train_step(one_label(ids)).step, flush=True)
        run.save_delta(Path(run_dir) / "trained.safetensors")


def child(*arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", "benchmarks.kills", "--child", json.dumps([str(a) for a in arguments])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=common.ROOT)


def journal_of(run_dir: Path) -> dict:
    from pysmezo import _core

    path = run_dir / "journal.smz"
    return _core.read_journal(str(path)) if path.exists() else {"records": [], "n_bytes": 0}


class Kills:
    """What was found over all runs of a placement."""

    def __init__(self, moments: random.Random):
        self.moments, self.n, self.while_opening, self.reopened = moments, 0, 0, []

    def kill(self, start, run_dir: Path, n_kills: int) -> int:
        """Kills what `start` starts so often; returns the steps there are then. AssertionError: an acknowledged step is
        gone, or a committed byte has changed."""
        acknowledged, before, opening = 0, b"", 1.0
        for _ in range(n_kills):
            begin, process = time.monotonic(), start()
            if early := self.moments.random() < 0.25:
                time.sleep(self.moments.random() * opening)
            else:
                for i in range(self.moments.randint(1, 3)):
                    line = process.stdout.readline()
                    assert line, f"the run ended by itself with code {process.wait()}"
                    acknowledged = int(line)
                    if i == 0:
                        opening = time.monotonic() - begin
                        self.reopened.append(opening)
                        step_began = time.monotonic()
                time.sleep(self.moments.random() * max(0.05, time.monotonic() - step_began))
            process.kill()
            last = acknowledged
            acknowledged = max([acknowledged, *map(int, process.stdout)])
            process.wait()
            self.n += 1
            self.while_opening += early and acknowledged == last
            found = journal_of(run_dir)
            bytes_now = (run_dir / "journal.smz").read_bytes()[: found["n_bytes"]] if found["n_bytes"] else b""
            assert len(found["records"]) >= acknowledged, f"step {acknowledged} is not in the journal"
            assert bytes_now.startswith(before), "what was committed has changed"
            before = bytes_now
        common.note(f"{self.n} kills, reopened in {self.reopened[-1]:.1f} s after {len(found['records'])} steps")
        return len(found["records"])


def finish(model: Path, run_dir: Path, placement: str, until: int) -> tuple[list, bytes]:
    """(records without their chain of checksums, which a random salt goes into; weights of the delta)."""
    process = child(model, run_dir, placement, until)
    process.stdout.read()
    if process.wait():
        raise RuntimeError(f"training to step {until} ended with code {process.returncode}")
    delta = (run_dir / "trained.safetensors").read_bytes()
    records = [{k: v for k, v in r.items() if k != "chain"} for r in journal_of(run_dir)["records"]]
    return records, delta[8 + int.from_bytes(delta[:8], "little") :]


def measure(model: Path, placement: str, n_kills: int, folder: Path) -> dict:
    kills, n_steps, same = Kills(random.Random(placement)), 0, True
    for first in range(0, n_kills, KILLS_A_RUN):
        killed, whole = folder / f"killed-{first}", folder / f"whole-{first}"
        n = 3 + kills.kill(lambda at=killed: child(model, at, placement), killed, min(KILLS_A_RUN, n_kills - first))
        same &= finish(model, killed, placement, n) == finish(model, whole, placement, n)
        n_steps += n
        shutil.rmtree(killed)
        shutil.rmtree(whole)
    return {
        "kills": kills.n,
        "while_opening": kills.while_opening,
        "steps": n_steps,
        "reopened_median_s": statistics.median(kills.reopened),
        "reopened_most_s": max(kills.reopened),
        "bit_identical": same,
    }


def targets(rows: dict) -> list[dict]:
    out = [common.target("kills in all", sum(r["kills"] for r in rows.values()), at_least=500)]
    for name, row in rows.items():
        out += [
            common.target(f"{name}: as if never killed, bit for bit", float(row["bit_identical"]), at_least=1),
            common.target(f"{name}: seconds to reopen, most", row["reopened_most_s"], at_most=REOPEN_AT_MOST_S),
        ]
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--demo", type=Path, help="folder made by pysmezo demo --prepare")
    p.add_argument("--kills", type=int, default=250, help="of each placement")
    p.add_argument("--only", choices=PLACEMENTS)
    p.add_argument("--json", action="store_true")
    p.add_argument("--child", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        model, run_dir, placement, *until = json.loads(a.child)
        return train(model, run_dir, placement, *map(int, until))
    models = Models(common.cache_dir("streaming").resolve(), a.demo, True)
    where, isa, rows = common.machine(), common.isa(), {}
    try:
        model = models.path(Spec("smollm2-135m", "bf16"))
    except NotRun as e:
        p.error(str(e))
    for placement in [a.only] if a.only else PLACEMENTS:
        with tempfile.TemporaryDirectory(prefix="kills-", dir=models.folder) as folder:
            rows[placement] = measure(model, placement, a.kills, Path(folder))
    common.finish("kills", {"machine": where, "isa": isa, "rows": rows, "targets": targets(rows)}, a.json)


if __name__ == "__main__":
    main()
