"""The command line: arguments, exit codes, one line for an error, JSON; a tiny model trained, interrupted, resumed."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny_llama
import tiny_task

from pysmezo import ArgumentError, FormatError, SparseMeZO, children, cli, options
from pysmezo.session import open_runtime
from pysmezo.verbs import evaluate as eval_verb

JSON_KEYS = {
    "steps_skipped",
    "accuracy_before", "accuracy_after", "loss_before", "loss_after", "steps", "train_seconds", "auc_before",
    "auc_after", "accuracy_calibrated_before", "accuracy_calibrated_after", "peak_rss_bytes", "rss_at_open_bytes",
    "delta_bytes", "delta_path", "run_dir",
}  # fmt: skip


@pytest.fixture(scope="module")
def task_dir(tmp_path_factory):
    """A tiny model, 40 training and 40 test rows, a task."""
    folder = tmp_path_factory.mktemp("task")
    c = tiny_llama.config(vocab=320)
    tiny_llama.save(folder / "model", c, tiny_llama.random_weights(c))
    tiny_task.write_tokenizer(folder / "model")
    rows = tiny_task.rows(80)
    tiny_task.write_jsonl(folder / "train.jsonl", rows[:40])
    tiny_task.write_jsonl(folder / "test.jsonl", rows[40:])
    (folder / "task.yaml").write_text(tiny_task.TASK_YAML)
    return folder


def train_flags(folder, run_dir, **more):
    flags = {
        "model": folder / "model", "train": folder / "train.jsonl", "eval": folder / "test.jsonl",
        "task": folder / "task.yaml",
        "steps": 8, "batch": 4, "lr": "1e-3", "eps": "1e-3", "threads": 1, "run-dir": run_dir, **more,
    }  # fmt: skip
    return [x for name, value in flags.items() if value is not None for x in (f"--{name}", str(value))]


def child(*arguments, **more):
    return subprocess.run(
        [sys.executable, "-m", "pysmezo", *map(str, arguments)],
        env=children.environment(),
        capture_output=True,
        text=True,
        **more,
    )


def failed(capsys, argv, code=cli.USAGE) -> str:
    """The one line that a refused command says."""
    assert cli.main([str(a) for a in argv]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: [")
    return lines[0]


def trained(run_dir) -> bytes:
    """The delta's values. Its header names a point of one journal, whose salt is drawn at random."""
    raw = (run_dir / "trained.delta.safetensors").read_bytes()
    return raw[8 + int.from_bytes(raw[:8], "little") :]


# ---- arguments


def test_unknown_verb_lists_the_verbs(capsys):
    line = failed(capsys, ["trian"])
    assert all(verb in line for verb in cli.VERBS)


def test_help(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in cli.VERBS)
    assert cli.main([]) == cli.USAGE
    assert cli.main(["--version"]) == 0


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (["train"], "--model, --train, --task"),
        (["train", "--sparcity", "0.5"], "--sparcity"),
        (["train", "--steps", "many"], "--steps 'many', expected an integer"),
        (["train", "--steps", "1.5"], "expected an integer"),
        (["train", "--method", "adam"], "expected one of mezo, random-mask"),
        (["train", "--sparsity", "1"], "sparsity 1"),
        (["train", "--method", "mezo", "--sparsity", "0.5"], "--sparsity with method mezo"),
        (["train", "--schedule", "step"], "constant, linear, cosine"),
        (["train", "--seed", "-1"], "2^64"),
        (["train", "--config", "none.yaml"], "none.yaml"),
        (["train", "--step", "3"], "--step"),  # no abbreviations
        (["resume"], "--run-dir"),
        (["resume", "--run-dir", "none"], "run.json"),
        (["resume", "--run-dir", "none", "--lr", "1"], "--lr"),
        (["eval"], "--data"),
        (["inspect", "none"], "none"),
        (["inspect"], "path"),
    ],
)
def test_bad_arguments(capsys, tmp_path, monkeypatch, argv, found):
    monkeypatch.chdir(tmp_path)
    assert found in failed(capsys, argv)
    assert list(tmp_path.iterdir()) == []


def test_every_method_field_is_a_flag():
    from dataclasses import fields

    from pysmezo.methods import METHODS

    for name, method in METHODS.items():
        given = {f.name: f.default for f in fields(method) if f.default is not None}
        values, made = options.settings({"method": name, **{k: str(v) for k, v in given.items()}})
        assert made == method() and values["method"] == name
        parser = cli.Parser()
        options.add_flags(parser)
        argv = [x for f in fields(method) for x in ("--" + f.name.replace("_", "-"), str(f.default))]
        given |= {f.name: None for f in fields(method)}
        assert set(vars(parser.parse_args(argv))) == set(given)


def test_flags_override_yaml_overrides_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("steps: 7\nbatch: 3\nsparsity: 0.5\nweight-decay: 0.1\neval_every: 2\n")
    given = {**options.read_config(path), "batch": "5"}
    values, method = options.settings(given, {"steps": 100, "schedule": "linear"})
    assert (values["steps"], values["batch"], values["eval_every"], values["schedule"]) == (7, 5, 2, "linear")
    assert values["lr"] == "auto" and values["seed"] == 0
    assert method == SparseMeZO(sparsity=0.5, weight_decay=0.1)


def test_bad_yaml(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("stepz: 7\n")
    with pytest.raises(ArgumentError, match="did you mean 'steps'"):
        options.read_config(path)
    path.write_text("- 7\n")
    with pytest.raises(FormatError, match="list"):
        options.read_config(path)
    path.write_text("a: [")
    with pytest.raises(FormatError, match="not YAML"):
        options.read_config(path)
    path.write_text("")
    assert options.read_config(path) == {}
    path.write_text("truncate: maybe\n")
    with pytest.raises(ArgumentError, match="--truncate"):
        options.settings(options.read_config(path))


# ---- whole commands


@contextmanager
def locked(run_dir):
    with open(run_dir / "lock") as f:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def test_train_eval_inspect(task_dir, tmp_path, capsys, monkeypatch):
    run_dir = tmp_path / "run"
    assert cli.main(["train", *train_flags(task_dir, run_dir), "--eval-every", "4", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result) == JSON_KEYS
    assert result["steps"] == 8 and result["run_dir"] == str(run_dir)
    assert result["loss_after"] != result["loss_before"]
    assert os.path.getsize(result["delta_path"]) == result["delta_bytes"] > 0
    assert result["peak_rss_bytes"] >= result["rss_at_open_bytes"] > 0

    for source in (
        ["--run-dir", run_dir],
        ["--model", task_dir / "model", "--delta", result["delta_path"], "--task", task_dir / "task.yaml"],
    ):
        assert cli.main([str(x) for x in ["eval", *source, "--data", task_dir / "test.jsonl", "--json"]]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found == {"accuracy": result["accuracy_after"], "loss": result["loss_after"], "n_examples": 40}

    # A bare base is not copied.
    opened = []
    with monkeypatch.context() as m:
        m.setattr(eval_verb, "open_runtime", lambda *a: opened.append(open_runtime(*a)) or opened[0])
        flags = ["--model", task_dir / "model", "--task", task_dir / "task.yaml", "--data", task_dir / "test.jsonl"]
        assert cli.main([str(x) for x in ["eval", *flags, "--json"]]) == 0
    # A working copy of this base, which is fp32, has 24 bits.
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["loss"] == pytest.approx(
        result["loss_before"], rel=1e-4
    )
    assert opened[0].diagnostics()["n_trained"] == 64

    # A run may be looked at while another process has it.
    with locked(run_dir):
        assert cli.main(["eval", "--run-dir", str(run_dir), "--data", str(task_dir / "test.jsonl"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["loss"] == result["loss_after"]
        assert "in use by process" in failed(capsys, ["resume", "--run-dir", str(run_dir)])

    for path, kind in (
        (run_dir, "run folder"),
        (run_dir / "journal.smz", "journal"),
        (run_dir / "tokens-train.ids", "id file"),
        (run_dir / "metrics.jsonl", "metrics"),
        (run_dir / "run.json", "settings of a run"),
        (result["delta_path"], "delta"),
        (task_dir / "model", "model folder"),
        (task_dir / "model" / "model.safetensors", "safetensors"),
    ):
        assert cli.main(["inspect", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["kind"] == kind

    lines = [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if "type" not in x] == list(range(1, 9))
    assert [x["step"] for x in lines if x.get("type") == "eval"] == [4, 8]

    # The folder is a run: the same command finds it done, another one is refused.
    assert cli.main(["train", *train_flags(task_dir, run_dir), "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {**again, "peak_rss_bytes": 0, "rss_at_open_bytes": 0} == {
        **result,
        "peak_rss_bytes": 0,
        "rss_at_open_bytes": 0,
    }
    assert "batch 4, expected 5" in failed(capsys, ["train", *train_flags(task_dir, run_dir, batch=5)])


@pytest.mark.slow
def test_yaml_config_trains_like_flags(task_dir, tmp_path, capsys):
    flags = train_flags(task_dir, tmp_path / "a")
    assert cli.main(["train", *flags, "--sparsity", "0.5"]) == 0
    config = dict(zip((f[2:] for f in flags[::2]), flags[1::2], strict=True)) | {
        "sparsity": 0.5,
        "steps": 99,
        "run-dir": str(tmp_path / "b"),
    }
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    assert cli.main(["train", "--config", str(tmp_path / "c.yaml"), "--steps", "8"]) == 0
    assert trained(tmp_path / "a") == trained(tmp_path / "b")
    capsys.readouterr()


def test_refused_input_leaves_no_run_folder(task_dir, tmp_path, capsys):
    bad = tiny_task.write_jsonl(tmp_path / "bad.jsonl", [*tiny_task.rows(2), {"text": "a", "label": 5}])
    run_dir = tmp_path / "run"
    assert "line 3 of bad.jsonl" in failed(capsys, ["train", *train_flags(task_dir, run_dir, train=bad)])
    assert not run_dir.exists()
    assert "lr" in failed(capsys, ["train", *train_flags(task_dir, run_dir, lr=0)])
    assert "no-such" in failed(capsys, ["train", *train_flags(task_dir, run_dir, model=tmp_path / "no-such")])


def test_too_small_a_budget_exits_3(task_dir, tmp_path, capsys):
    argv = ["train", *train_flags(task_dir, tmp_path / "run"), "--memory-budget", "1KiB"]
    assert cli.main(argv) == cli.DOES_NOT_FIT
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: [")


@pytest.mark.slow
def test_reads_through_the_page_cache_and_runs_of_releases_without(task_dir, tmp_path, capsys):
    """The same bits with the option, kept in run.json; a run.json that lacks it goes on with the default."""
    budget = {"memory-budget": "64MiB", "steps": 6, "eval": None}
    assert cli.main(["train", *train_flags(task_dir, tmp_path / "past", **budget)]) == 0
    run = tmp_path / "through"
    assert cli.main(["train", *train_flags(task_dir, run, **budget), "--cached-reads"]) == 0
    assert trained(run) == trained(tmp_path / "past")
    content = json.loads((run / "run.json").read_text())
    assert content["settings"].pop("cached_reads") is True
    (run / "run.json").write_text(json.dumps(content))
    for more, kept in (([], False), (["--cached-reads"], True)):
        assert cli.main(["resume", "--run-dir", str(run), *more]) == 0
        assert json.loads((run / "run.json").read_text())["settings"]["cached_reads"] is kept
        assert trained(run) == trained(tmp_path / "past")
    assert cli.main(["plan", "--model", str(task_dir / "model"), "--cached-reads", "--memory-budget", "64MiB"]) == 0
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_equals_uninterrupted(task_dir, tmp_path, number, capsys):
    steps = 2000
    whole = tmp_path / "whole"
    more = {"steps": steps, "schedule": "cosine", "eval": None}
    assert cli.main(["train", *train_flags(task_dir, whole, **more)]) == 0
    capsys.readouterr()
    cut = tmp_path / "cut"
    process = subprocess.Popen(
        [sys.executable, "-m", "pysmezo", "train", *train_flags(task_dir, cut, **more), "--json"],
        env=children.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = cut / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size > 5000):
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == cli.INTERRUPTED, err
    result = json.loads(out.splitlines()[-1])
    assert 0 < result["steps"] < steps and result["delta_path"] is None
    assert f"pysmezo resume --run-dir {cut}" in err
    done = child("resume", "--run-dir", cut, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == steps
    assert trained(whole) == trained(cut)
    taken = [json.loads(x)["step"] for x in metrics.read_text().splitlines()]
    assert taken == list(range(1, steps + 1))


def test_error_is_one_line_without_a_traceback(task_dir, tmp_path):
    done = child("train", *train_flags(task_dir, tmp_path / "run", task=tmp_path / "none.yaml"))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: [task]")


@pytest.mark.slow
def test_doctor(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.main(["doctor", "--dir", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["instruction_set"] in found["instruction_sets"]
    assert found["disk"]["write_bytes_per_s"] > 0 and found["threads"] >= 1
    assert json.loads(Path(tmp_path, "pysmezo", "doctor.json").read_text()) == found


def test_training_process_imports_nothing_heavy(task_dir, tmp_path):
    code = (
        "import sys; from pysmezo import cli; code = cli.main(sys.argv[1:]); "
        "print(','.join(sorted({m.split('.')[0] for m in sys.modules}))); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "train", *train_flags(task_dir, tmp_path / "run")],
        env=children.environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split(","))
    assert "pysmezo" in loaded
    assert not loaded & {
        "torch",
        "transformers",
        "tokenizers",
        "matplotlib",
        "gguf",
        "safetensors",
        "yaml",
        "tqdm",
        "jinja2",
    }
