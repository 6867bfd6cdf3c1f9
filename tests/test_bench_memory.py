"""bench memory: a run watched from outside, split by purpose, drawn; the plan, hand-made rows and the run's own report
are the oracles.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

import numpy as np
import pytest
import tiny_llama
import tiny_task
from quick import measures_memory, quickly

from pysmezo import PysmezoError, _draw_memory, cli, held, memory, methods, packing, planning
from pysmezo.verbs import bench_memory

CONFIG = tiny_llama.config(hidden=256, inner=768, layers=3) | {"vocab_size": 1200}
MIB = 1 << 20
STEPS = 4
# Newer kernels count resident pages per processor and add them up now and then.
SLACK_BYTES = 256 << 10
GROWTH_SLACK_BYTES = 2 * SLACK_BYTES  # of the difference of two readings
KEYS = {
    "budget_bytes", "rss_at_open_bytes", "peak_rss_bytes", "peak_is_sampled", "within_budget", "predicted_process_bytes",
    "bytes_by_purpose", "predicted_by_purpose", "cgroup_peak_bytes", "steps", "step_s", "stall_s", "bytes_read_per_step",
    "bytes_written_per_step", "samples_path", "picture_path",
}  # fmt: skip
SENSITIVE = {"method": "sensitive", "fraction": 0.01}
# Flags of the runs that are measured.
RUNS = {
    "streamed": {**SENSITIVE, "memory-budget": "9MiB"},
    "generations": {"method": "sparse-mezo", "memory-budget": "24MiB", "stream-trained": "", "generation-every": 2},
    "resident": {"method": "mezo"},
    "task": {**SENSITIVE, "memory-budget": "9MiB"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    weights = tiny_llama.to_bf16(tiny_llama.random_weights(CONFIG))
    folder = tiny_llama.save(tmp_path_factory.mktemp("model") / "tiny", CONFIG, weights, "BF16")
    tiny_task.write_tokenizer(folder)
    return folder


def command(model, **flags):
    flags = {"model": model, "batch": 4, "length": 24, "steps": STEPS, "threads": 2, **flags}
    given = [x for k, v in flags.items() for x in ((f"--{k}", str(v)) if v != "" else (f"--{k}",))]
    return cli.main(["bench", "memory", "--json", *given])


@pytest.fixture(scope="module", params=quickly(("streamed",), RUNS))
def measured(request, model, tmp_path_factory):
    """(name, result, rows, what it printed) of a run."""
    flags = dict(RUNS[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "task":
        flags["task"] = folder / "task.yaml"
        flags["task"].write_text(tiny_task.TASK_YAML)
        flags["config"] = folder / "run.yaml"
        flags["config"].write_text(
            f"method: {flags.pop('method')}\nfraction: {flags.pop('fraction')}\nmemory-budget: 1MiB\n"
        )
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert command(model, **flags, out=folder / "run.png") == cli.OK
    text = out.getvalue()
    assert {p.name for p in folder.iterdir()} <= {"run.png", "run.samples.jsonl", "task.yaml", "run.yaml"}, (
        "the run folder is gone"
    )
    return request.param, json.loads(text.splitlines()[-1]), held.read(folder / "run.samples.jsonl"), text


def samples_of(rows):
    return [r for r in rows if r["type"] == "sample"]


@measures_memory
def test_result(measured, model):
    name, r, rows, text = measured
    assert set(r) == KEYS
    budget = memory.parse_bytes(RUNS[name].get("memory-budget"))
    assert r["budget_bytes"] == budget and r["steps"] == STEPS and not r["peak_is_sampled"]
    assert r["rss_at_open_bytes"] < r["peak_rss_bytes"] <= r["predicted_process_bytes"]
    if budget is None:
        assert r["within_budget"] is None and r["bytes_read_per_step"] == 0
    else:
        assert r["within_budget"] is True and r["peak_rss_bytes"] <= r["rss_at_open_bytes"] + budget
        assert r["bytes_read_per_step"] > MIB
    assert r["step_s"] > 0 and 0 <= r["stall_s"] < r["step_s"] and r["bytes_written_per_step"] >= 44
    assert (r["bytes_written_per_step"] > 100_000) == (name == "generations")
    line = next(x for x in text.splitlines() if x.startswith("process = "))
    for n in (r["rss_at_open_bytes"], r["peak_rss_bytes"], r["predicted_process_bytes"]):
        assert f"{n / MIB:.0f} MiB" in line
    assert ("below the line" in line) == (budget is not None)


def test_prediction_is_the_plan(measured, model, capsys, tmp_path):
    name, r, _, _ = measured
    flags = {"model": model, "batch": 4, "length": 24, "threads": 2, **RUNS[name]}
    if name == "generations":  # `plan` has no flags for them
        given = {"threads": 2, "memory_budget": "24MiB", "stream_trained": True, "generation_every": 2}
        planned = planning.plan(planning.planner(model, methods.SparseMeZO(), **given), 4, 24, 2)
    else:
        if name == "task":
            flags["task"] = tmp_path / "task.yaml"
            flags["task"].write_text(tiny_task.TASK_YAML)
        assert cli.main(["plan", "--json", *(x for k, v in flags.items() for x in (f"--{k}", str(v)))]) == cli.OK
        planned = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert r["predicted_by_purpose"] == planned["bytes_by_purpose"]
    assert r["predicted_process_bytes"] - r["rss_at_open_bytes"] == planned["predicted_peak_bytes"]
    if name != "generations":  # there is none to read before the first is written
        assert r["bytes_read_per_step"] == pytest.approx(planned["bytes_read_per_step"], rel=0.02)


def test_samples_follow_the_run(measured):
    _, r, rows, _ = measured
    times = [row["s"] for row in rows]
    assert times == sorted(times) and rows[0]["type"] == "run" and times[0] == 0
    samples = samples_of(rows)
    phases = list(dict.fromkeys(s["phase"] for s in samples))
    assert phases == ["starting", "opening", *(f"step {k}" for k in range(1, STEPS + 1))]
    stepping = [s for s in samples if s["phase"].startswith("step")]
    peaks = [s["peak_rss_bytes"] for s in stepping]
    assert peaks == sorted(peaks) and peaks[-1] == r["peak_rss_bytes"]
    assert all(held.resident_bytes(s) <= s["peak_rss_bytes"] + SLACK_BYTES for s in samples)
    assert [x["phase"] for x in rows if x["type"] == "held"] == phases[1:]
    longest = max(b["s"] - a["s"] for a, b in zip(samples, samples[1:], strict=False))
    assert longest < 50 * held.INTERVAL_S


@measures_memory
def test_what_the_engine_counts_is_there(measured):
    """What has grown since the opening is at least what is counted, and no more than that and the allowance."""
    _, r, rows, _ = measured
    before = next(row for row in rows if row["type"] == "opening")
    last = samples_of(rows)[-1]
    counts = [row for row in rows if row["type"] == "held"][-1]["bytes_by_purpose"]
    ring = min(counts["ring"], r["predicted_by_purpose"]["ring"])
    counted = sum(n for name, n in counts.items() if name not in ("ring", "other")) + ring
    grown = {k: last[k] - before[k] for k in ("rss_anon_bytes", "rss_file_bytes")}
    assert counted > 2 * MIB and grown["rss_anon_bytes"] >= counted - GROWTH_SLACK_BYTES
    allowed = counted + counts["other"] + r["predicted_by_purpose"]["mapped base"]
    assert sum(grown.values()) <= allowed + GROWTH_SLACK_BYTES


@measures_memory
def test_purposes_add_up(measured):
    name, r, rows, _ = measured
    for sample, parts in held.purposes(rows):
        assert sum(parts.values()) == held.resident_bytes(sample) and min(parts.values()) >= 0
    found, planned = r["bytes_by_purpose"], r["predicted_by_purpose"]
    assert sum(found.values()) <= r["peak_rss_bytes"] + SLACK_BYTES
    assert found["not accounted for"] <= SLACK_BYTES
    purpose = {"resident": "mapped base", "generations": "supports"}.get(name, "index sets")
    for key in (purpose, "forward"):
        assert planned[key] > 0 and found[key] == pytest.approx(planned[key], abs=GROWTH_SLACK_BYTES), key


# ---- the split, by hand


def rows_by_hand():
    """At open 20 anonymous and 10 of files; the engine counts 5 of state, a ring of 8 of which 3 are touched, 2 of forward and
    allows 4 for the rest; 6 of the base are mapped.
    """
    planned = {"bytes_by_purpose": {"ring": 3, "mapped base": 6}, "predicted_peak_bytes": 20}
    counts = {"working copies": 5, "ring": 8, "forward": 2, "other": 4}

    def sample(s, phase, anon, files, peak=0):
        now = {"rss_anon_bytes": anon, "rss_file_bytes": files, "rss_shmem_bytes": 0, "peak_rss_bytes": peak}
        return {"type": "sample", "s": s, "phase": phase, **now}

    return [
        {"type": "run", "s": 0.0, "steps": 2, "planned": planned, "budget_bytes": 18},
        sample(1, "starting", 15, 9),
        {"type": "opening", "s": 2, "peak_is_reset": True, "rss_anon_bytes": 20, "rss_file_bytes": 10, "rss_shmem_bytes": 0},
        sample(3, "opening", 33, 11),
        {"type": "held", "s": 4, "phase": "opening", "bytes_by_purpose": counts | {"forward": 0}, "rss_at_open_bytes": 30},
        sample(5, "step 1", 26, 17),
        {"type": "held", "s": 6, "phase": "step 1", "bytes_by_purpose": counts},
        sample(7, "step 2", 39, 18, peak=58),
        sample(8, "step 2", 32, 4),
    ]  # fmt: skip


def test_split_by_hand():
    expected = [
        {"process at open": 24},
        # Of 14 more 13 are anonymous: 5 of state; the ring is not there yet; 1 of the base; the rest is scratch.
        {"process at open": 30, "working copies": 5, "mapped base": 1, "opening": 8},
        # 6 anonymous: state and the first of the ring; of 7 of files one more than the base has.
        {"process at open": 30, "working copies": 5, "ring": 1, "mapped base": 6, "other": 1},
        # 19 anonymous and 8 of files: 10 counted, 6 mapped, the allowance, and 7 that nobody knows of.
        {
            "process at open": 30, "working copies": 5, "ring": 3, "forward": 2, "mapped base": 6, "other": 4,
            "not accounted for": 7,
        },
        # The system took pages of files back that were there at open.
        {"process at open": 26, "working copies": 5, "ring": 3, "forward": 2},
    ]  # fmt: skip
    found = [{k: n for k, n in parts.items() if n} for _, parts in held.purposes(rows_by_hand())]
    assert found == expected


def test_summed_by_hand():
    rows = rows_by_hand()
    took = {"seconds": 2.0, "stall_s": 0.5, "bytes_read": 100, "bytes_written": 10}
    rows[6] |= took | {"peak_rss_bytes": 50}
    took |= {"seconds": 4.0, "bytes_read": 201, "bytes_written": 21}
    rows.append(rows[6] | took | {"s": 9, "phase": "step 2", "peak_rss_bytes": 58})
    r = bench_memory.summed(rows)
    assert (r["rss_at_open_bytes"], r["peak_rss_bytes"], r["predicted_process_bytes"]) == (30, 58, 50)
    assert r["within_budget"] is False and "ABOVE the line" in "\n".join(bench_memory.lines(r))
    assert (r["step_s"], r["stall_s"], r["bytes_read_per_step"], r["bytes_written_per_step"]) == (3.0, 0.5, 150, 16)
    assert r["cgroup_peak_bytes"] is None and r["steps"] == 2
    rows[2]["peak_is_reset"] = False
    r = bench_memory.summed(rows)
    assert r["peak_is_sampled"] and r["peak_rss_bytes"] == 57


# ---- refusals, and what is left


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"lr": 1e-3}, "--lr"),
        ({"sparsity": 0.5}, "--sparsity with method sensitive"),
        ({"steps": 0}, "--steps '0'"),
        ({"length": 1}, "4 texts of 1 tokens"),
        ({"out": "picture.svg"}, "ends in .png"),
        ({"out": "nowhere/picture.png"}, "a folder that exists"),
        ({"memory-budget": "plenty"}, "plenty"),
    ],
)
def test_refused_in_one_line(model, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    assert command(model, **{**SENSITIVE, **flags}) == cli.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: [") and words in line
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_not_started(model, tmp_path, capsys):
    flags = SENSITIVE | {"memory-budget": "5MiB", "batch": 64, "length": 64}
    assert command(model, **flags, out=tmp_path / "run.png") == cli.DOES_NOT_FIT
    (line,) = capsys.readouterr().err.splitlines()
    p = planning.planner(model, methods.Sensitive(fraction=0.01), memory_budget="5MiB", threads=2)
    assert line == f"error: {planning.advice(planning.plan(p, 64, 64, 2), 64, 64)}"
    assert not list(tmp_path.iterdir())


CHILD = """#!{python}
import json, os, time
held = dict(rss_anon_bytes=1 << 20, rss_file_bytes=1 << 20, rss_shmem_bytes=0, peak_rss_bytes=2 << 20)
print(json.dumps(dict(type="opening", at=time.monotonic(), peak_is_reset=True, **held)), flush=True)
time.sleep(0.1)
print('{{"type": "he', end="", flush=True)
{end}
"""


def ended_early(tmp_path, monkeypatch, end):
    script = tmp_path / "child"
    script.write_text(CHILD.format(python=sys.executable, end=end))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    planned = {"bytes_by_purpose": {"ring": 0, "mapped base": 0}}
    with pytest.raises(PysmezoError) as found:
        held.watch({"steps": 2, "planned": planned}, {}, str(tmp_path / "run.samples.jsonl"))
    rows = held.read(tmp_path / "run.samples.jsonl")
    assert {s["phase"] for s in samples_of(rows)} == {"starting", "opening"}
    assert all(parts == {held.AT_OPEN: held.resident_bytes(s)} for s, parts in held.purposes(rows))
    return found


def test_a_killed_run_leaves_its_samples(tmp_path, monkeypatch):
    found = ended_early(tmp_path, monkeypatch, "os.kill(os.getpid(), 9)")
    assert "killed by signal 9 at " in str(found.value) and "in opening" in str(found.value)


def test_a_refused_run_says_why(tmp_path, monkeypatch):
    found = ended_early(tmp_path, monkeypatch, "raise SystemExit('FormatError: [x] half a file')")
    assert found.typename == "FormatError" and str(found.value) == "[x] half a file"


# ---- the picture


def test_picture(measured):
    pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib")
    _, r, _, text = measured
    with open(r["picture_path"], "rb") as f:
        head = f.read(24)
    assert head[:8] == b"\x89PNG\r\n\x1a\n" and int.from_bytes(head[16:20], "big") > 1000
    assert r["picture_path"] in text and r["samples_path"] in text


def test_every_purpose_has_a_color(measured):
    _, r, _, _ = measured
    assert {*r["bytes_by_purpose"], *r["predicted_by_purpose"]} <= set(_draw_memory.COLORS)
    assert len(set(_draw_memory.COLORS.values())) == len(_draw_memory.COLORS)


def test_without_matplotlib_the_numbers_stay(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "matplotlib.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "absent"))
    assert command(model, **SENSITIVE, steps=1, out=tmp_path / "run.png") == cli.OK
    out = capsys.readouterr().out
    r = json.loads(out.splitlines()[-1])
    assert r["picture_path"] is None and r["peak_rss_bytes"] > r["rss_at_open_bytes"]
    assert "none: [report] the package matplotlib is not installed" in out
    assert samples_of(held.read(tmp_path / "run.samples.jsonl")) and not (tmp_path / "run.png").exists()


# ---- parts


def test_random_batches_have_the_planned_shape():
    for options in (None, [[1], [2]], [[1, 5], [2]]):
        shaped = planning.shaped(3, 9, 100, options)
        first, again, other = (planning.random_batch(3, 9, 100, options, seed) for seed in (0, 0, 1))
        for key in ("tokens", "segments", "labels"):
            assert getattr(first, key).shape == getattr(shaped, key).shape
            assert np.array_equal(getattr(first, key), getattr(again, key))
        assert not np.array_equal(first.tokens, other.tokens)
        assert first.tokens.min() >= 0 and first.tokens.max() < 100 and first.task == shaped.task
    assert planning.random_batch(3, 9, 100).task == packing.LANGUAGE_MODEL


@pytest.mark.parametrize(
    ("told", "file"),
    [
        ("0::/a/b\n", "a/b/memory.current"),
        ("5:cpu,memory:/a\n0::/\n", "memory/a/memory.usage_in_bytes"),
        ("0::/as/the/host/sees/it\n", "memory.current"),
        ("4:memory:/elsewhere\n", "memory/memory.usage_in_bytes"),
        ("3:cpu:/a\n", None),
        ("0::/a\n", None),
        (None, None),
    ],
)
def test_control_group(tmp_path, told, file):
    if told is not None:
        (tmp_path / "told").write_text(told)
    if file is not None:
        (tmp_path / "fs" / file).parent.mkdir(parents=True)
        (tmp_path / "fs" / file).write_text("4096\n")
    found = memory.cgroup_file(str(tmp_path / "told"), str(tmp_path / "fs"))
    assert found == (file and str(tmp_path / "fs" / file))
