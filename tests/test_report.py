"""metrics.jsonl and the picture drawn from it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pysmezo import ArgumentError, children, metrics, report


def step(i, **change):
    line = {
        "step": i, "loss": 0.7 - 0.001 * i, "loss_plus": 0.7, "loss_minus": 0.7, "projected_grad": 1.0, "scalars":
        (1.0,), "seconds": 0.2, "stall_s": 0.0, "bytes_read": 0, "bytes_written": 52, "peak_rss_bytes": 300 << 20,
        "peak_anon_bytes": 80 << 20, "skipped": False, "parts": {"linear": 0.15, "attention": 0.02, "commit": 0.001},
        "loss_mean": 0.7, "loss_mean_error": None, "loss_change": None, "loss_change_z": None, "grad_rms": 1.0, "step_rms": 1e-5,
    }  # fmt: skip
    return {**line, **change}


def test_lines_come_back(tmp_path):
    w = metrics.Writer(tmp_path, 0)
    w.write(step(1))
    w.write({"type": "eval", "step": 1, "accuracy": 0.5})
    w.write(step(2, loss=float("nan"), projected_grad=float("inf")))
    w.close()
    lines = metrics.read(tmp_path)
    assert [x["step"] for x in lines] == [1, 1, 2]
    assert lines[2]["loss"] is None and lines[2]["projected_grad"] is None and lines[0]["scalars"] == [1.0]
    for text in (tmp_path / metrics.NAME).read_text().splitlines():
        json.loads(text, parse_constant=pytest.fail)


def test_what_the_journal_lost_is_dropped(tmp_path):
    w = metrics.Writer(tmp_path, 0)
    for i in range(1, 6):
        w.write(step(i))
    w.write({"type": "eval", "step": 5, "accuracy": 0.5})
    w.close()
    with open(tmp_path / metrics.NAME, "a") as f:
        f.write('{"step": 6, "lo')  # a kill in the middle of a line
    w = metrics.Writer(tmp_path, 3)
    w.write(step(4, loss=0.25))
    w.close()
    lines = metrics.read(tmp_path)
    assert [x["step"] for x in lines] == [1, 2, 3, 4] and lines[-1]["loss"] == 0.25


def _run(tmp_path, n):
    w = metrics.Writer(tmp_path, 0)
    for i in range(1, n + 1):
        w.write(step(i, loss=None if i == 2 else 0.7 - 0.001 * i))
        if i % 10 == 0:
            w.write({"type": "eval", "step": i, "accuracy": 0.5 + 0.005 * i, "loss": 0.6})
    w.close()


@pytest.mark.parametrize("n", [1, pytest.param(60, marks=pytest.mark.slow)])
def test_picture(tmp_path, n):
    pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib")
    _run(tmp_path, n)
    if n > 1:
        content = {
            "settings": {"model": "a/model", "steps": n}, "method": {"kind": "sparse-mezo", "sparsity": 0.75, "noise":
            "gaussian8"}, "base_bytes": 269 << 20, "rss_at_open_bytes": 30 << 20, "before": {"accuracy": 0.5}, "after":
            {"accuracy": 0.8},
        }  # fmt: skip
        (tmp_path / "run.json").write_text(json.dumps(content))
    path = report.draw(tmp_path)
    assert path == str(tmp_path / report.NAME)
    head = (tmp_path / report.NAME).read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n" and int.from_bytes(head[16:20], "big") > 1000


def test_no_step_yet(tmp_path):
    pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib")
    with pytest.raises(ArgumentError, match="no step"):
        report.draw(tmp_path)


def test_without_matplotlib_one_clear_line(tmp_path):
    _run(tmp_path, 1)
    code = "import sys; sys.modules['matplotlib'] = None; from pysmezo import _draw; sys.exit(_draw.main(_draw.draw))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "x.png"],
        env=children.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "ArgumentError: [report] the package matplotlib is not installed, expected it: pip install matplotlib"
    ]


def test_a_long_runs_measurements_are_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.Writer, "MOST_BYTES", 200)
    w = metrics.Writer(tmp_path, 0)
    for s in range(1, 41):
        w.write({"step": s, "loss": 0.5})
    w.close()
    assert len(metrics.files(tmp_path)) > 4
    assert [x["step"] for x in metrics.lines(tmp_path)] == list(range(1, 41))
    # Back to a step that lies in an older file, and on from there.
    w = metrics.Writer(tmp_path, 11)
    assert [x["step"] for x in metrics.lines(tmp_path)] == list(range(1, 12))
    for s in range(12, 31):
        w.write({"step": s, "loss": 0.25})
    w.close()
    assert [x["step"] for x in metrics.read(tmp_path)] == list(range(1, 31))
    assert metrics.read(tmp_path)[-1]["loss"] == 0.25
