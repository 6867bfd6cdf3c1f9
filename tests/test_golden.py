"""Golden journals rebuild the weights they always did, on every instruction set of this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import golden_runs
import pytest

from pysmezo import Runtime, _core

TABLE = json.loads((golden_runs.FOLDER / "weights.json").read_text())


def rebuilt(folder: Path) -> dict[str, str]:
    """{name: hash of the weights} of all golden journals."""
    at, index = golden_runs.bases(folder), golden_runs.index_file(folder)
    out = {}
    for name, row in TABLE.items():
        own = index if name == "sensitive-index" else None
        with Runtime.from_journal(at[row["base"]], golden_runs.FOLDER / f"{name}.smz", index=own, threads=2) as run:
            assert run.step == row["steps"]
            out[name] = golden_runs.digest(run)
    return out


def test_every_kind_of_method_has_a_golden_journal():
    assert set(TABLE) == set(golden_runs.METHODS) == {p.stem for p in golden_runs.FOLDER.glob("*.smz")}
    assert len({row["weights"] for row in TABLE.values()}) == len(TABLE)


@pytest.mark.parametrize("isa", _core.supported_isas())
def test_golden_journals_rebuild_their_weights(tmp_path, isa):
    code = "import json, sys, pathlib, test_golden; print(json.dumps(test_golden.rebuilt(pathlib.Path(sys.argv[1]))))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parent,
        env={**os.environ, "SMEZO_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {name: row["weights"] for name, row in TABLE.items()}
