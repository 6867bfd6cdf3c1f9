"""find-lr, find-eps: the numbers that a run with `auto` takes, the picture, and what is said where there is no lr to name."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny_llama
import tiny_task
from quick import quickly
from test_cli import child, failed, train_flags

from pysmezo import ArgumentError, MeZO, Runtime, autotune, children, cli, data, presets, report
from pysmezo.methods import METHODS
from pysmezo.verbs import find

KEYS = {
    "lr", "eps", "trace_h", "trace_h_error", "n_probes", "curvature_eps", "grad_rms", "step_scale", "eps_rms_difference", "eps_agreed", "eps_tried",
    "surviving_perturbation", "picture",
}  # fmt: skip
CHOICES = ("lr", "eps", "trace_h", "trace_h_error", "eps_rms_difference", "eps_agreed")
# Seeds of the model: the loss around one curves upwards whatever trains, around the other downwards.
UPWARDS, DOWNWARDS = 1, 0


def make(folder, seed):
    c = tiny_llama.config(vocab=320)
    tiny_llama.save(folder / "model", c, tiny_llama.random_weights(c, seed))
    tiny_task.write_tokenizer(folder / "model")
    tiny_task.write_jsonl(folder / "train.jsonl", tiny_task.rows(40))
    (folder / "task.yaml").write_text(tiny_task.TASK_YAML)
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return make(tmp_path_factory.mktemp("task"), UPWARDS)


@pytest.fixture(scope="module")
def task_down(tmp_path_factory):
    return make(tmp_path_factory.mktemp("task"), DOWNWARDS)


@pytest.fixture(scope="module")
def tokens(task):
    out = task / "tokens-train.ids"
    data.tokenize(task / "model", task / "train.jsonl", task / "task.yaml", out)
    return out


@pytest.fixture
def in_process(tokens, monkeypatch):
    """No child: tokens are there (both models have the same), and no picture is drawn."""

    def tokenize(model, source, task, out, max_length=None, truncate=False):
        shutil.copyfile(tokens, out)
        return data.Dataset.open(out)

    monkeypatch.setattr(data, "tokenize", tokenize)
    monkeypatch.setattr(find, "_picture", lambda found, out: (None, "none"))
    monkeypatch.setattr(report, "draw", lambda run_dir: "none")


def flags(folder, run_dir=None, **more) -> list[str]:
    return train_flags(folder, run_dir, **{"eval": None, "lr": "auto", "eps": "auto", "steps": 1, **more})


def ran(capsys, argv, code: int = cli.OK) -> dict:
    """The JSON of a command."""
    assert cli.main([*map(str, argv), "--json"]) == code
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def is_png(path) -> bool:
    with open(path, "rb") as f:
        return f.read(8) == b"\x89PNG\r\n\x1a\n"


# ---- the same numbers as a run's


@pytest.mark.parametrize("method", quickly(("sparse-mezo", "tezo-adam"), METHODS))
def test_a_run_with_auto_takes_what_find_lr_says(task, in_process, tmp_path, capsys, method):
    """Of every method; where find-lr finds no lr, the run is refused with the same words."""
    code = cli.main(["find-lr", *flags(task, method=method), "--json"])
    said = capsys.readouterr()
    found = json.loads(said.out.splitlines()[-1])
    assert set(found) == KEYS
    run_dir = tmp_path / "run"
    if code == cli.OK:
        assert cli.main(["train", *flags(task, run_dir, method=method)]) == cli.OK
        choices = json.loads((run_dir / "run.json").read_text())["choices"]
        assert {key: found[key] for key in CHOICES} == choices
        assert found["lr"] == found["step_scale"] * autotune.LR_CONSTANT / found["trace_h"]
    else:
        assert code == cli.USAGE and found["lr"] is None
        assert cli.main(["train", *flags(task, run_dir, method=method)]) == cli.USAGE
        assert capsys.readouterr().err.splitlines()[-1] == said.err.splitlines()[-1]
    walk = ran(capsys, ["find-eps", *flags(task, method=method)])
    assert (walk["eps"], walk["rms_difference"], walk["agreed"]) == tuple(
        found[key] for key in ("eps", "eps_rms_difference", "eps_agreed")
    )
    assert walk["tried"] == found["eps_tried"]
    assert walk["surviving_perturbation"] == found["surviving_perturbation"]


@pytest.mark.slow
def test_in_a_budget_that_streams_what_trains(task, in_process, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(autotune, "N_LR_PROBES", 4)
    monkeypatch.setattr(autotune, "MOST_LR_PROBES", 8)
    c = tiny_llama.config(vocab=320, hidden=256, layers=8, inner=704)
    tiny_llama.save(tmp_path / "model", c, tiny_llama.random_weights(c, UPWARDS))
    shutil.copy(task / "model" / "tokenizer.json", tmp_path / "model")
    argv = flags(task, model=tmp_path / "model", eps="2e-3", method="mezo", batch=1)
    plan = ["plan", *argv, "--length", 40]
    least = ran(capsys, [*plan, "--memory-budget", "1GiB"])["smallest_budget_bytes"]
    budget = ["--memory-budget", str(least + (1 << 16))]
    assert ran(capsys, [*plan, *budget])["trained_streams"]
    outcomes = []
    for more in ([], budget):
        code = cli.main(["find-lr", *argv, *more, "--json"])
        outcomes.append((code, capsys.readouterr().out))
    assert outcomes[0] == outcomes[1] and '"trace_h"' in outcomes[0][1]
    assert cli.main(["find-lr", *argv, "--memory-budget", "1KiB"]) == cli.DOES_NOT_FIT


def test_a_given_eps_is_taken_and_a_given_lr_compared_with(task, in_process, capsys):
    assert cli.main(["find-lr", *flags(task, eps="2e-3", lr="1e-3"), "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["eps"] == 2e-3 and found["eps_tried"] == [] and found["eps_agreed"] is None
    assert f"given        --lr 0.001, {1e-3 / found['lr']:.2g} x that; not used here" in lines
    assert f"suggestion   --lr {found['lr']:.4g} --eps 0.002" in lines
    assert cli.main(["find-eps", *flags(task, eps="2e-3")]) == 0
    assert "given        --eps 0.002, 20 x that; not used here" in capsys.readouterr().out


# ---- picture, refusals


def test_picture_and_no_file_else(task, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib")
    monkeypatch.chdir(tmp_path)
    done = child("find-lr", *flags(task, tmp_path / "run"), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["picture"] == str(tmp_path / find.DEFAULT_PICTURE) and is_png(found["picture"])
    assert os.listdir(tmp_path) == [find.DEFAULT_PICTURE]


@pytest.mark.slow
def test_curvature_without_an_lr_is_shown_all_the_same(task_down, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib")
    out = tmp_path / "a.png"
    assert cli.main(["find-lr", *flags(task_down, eps="1e-3"), "--out", str(out), "--json"]) == cli.USAGE
    said = capsys.readouterr()
    found = json.loads(said.out.splitlines()[-1])
    assert found["lr"] is None and found["n_probes"] == autotune.MOST_LR_PROBES and found["trace_h"] < 0
    assert is_png(out) and found["picture"] == str(out)
    assert "note         the curvature is negative: no lr follows from it" in said.out
    assert said.err.splitlines()[-1].startswith("error: [lr] tr(H) measured as -") and "pass --lr" in said.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "--model, --train, --task"),
        (["--lr", "0"], "--lr '0'"),
        (["--out", "no/such/folder.png"], "--out"),
        (["--out", "."], "expected a file"),
        (["--run-dri", "x"], "--run-dri"),
    ],
)
def test_refusals(task, tmp_path, capsys, monkeypatch, argv, said):
    monkeypatch.chdir(tmp_path)
    assert said in failed(capsys, ["find-lr", *(flags(task) if argv else []), *argv])
    assert os.listdir(tmp_path) == []


def test_find_eps_has_no_picture(task, capsys):
    assert "--out" in failed(capsys, ["find-eps", *flags(task), "--out", "x.png"])


def test_without_matplotlib_one_clear_line(tmp_path):
    source = tmp_path / "found.json"
    drawn = {"eps_tried": [], "samples": [1.0, None, 3.0], "title": "", "lr": None, "verdict": "", "trace_h": None}
    source.write_text(json.dumps(drawn | {"trace_h_error": None, "curvature_eps": 1e-3}))
    code = "import sys; sys.modules['matplotlib'] = None; from pysmezo import _draw_lr as d; sys.exit(d.main(d.draw))"
    argv = [sys.executable, "-c", code, str(source), str(tmp_path / "x.png")]
    done = subprocess.run(argv, env=children.environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "ArgumentError: [report] the package matplotlib is not installed, expected it: pip install matplotlib"
    ]


def test_a_picture_that_cannot_be_drawn_is_one_line(task, in_process, tmp_path, capsys, monkeypatch):
    monkeypatch.undo()

    def no_picture(module, arguments):
        raise ArgumentError("[report] the package matplotlib is not installed")

    monkeypatch.setattr(children, "run", no_picture)
    assert find._picture({"lr": math.nan}, "x.png") == (None, "none: [report] the package matplotlib is not installed")


# ---- the measurements themselves


class Quadratic:
    """An engine whose loss is g x + h x^2 / 2 + noise along every direction; of direction i g is (-1)^i."""

    least_eps = 0.0

    def __init__(self, h: float, third: float = 0.0, scatter=lambda i: 0.0):
        self.h, self.third, self.scatter, self.asked = h, third, scatter, []

    def probe(self, batch, branches, step):
        self.asked.append((batch, branches, step))
        g = (-1) ** step
        x = [sign * eps for _, sign, eps in branches]
        return {
            "losses": [1 + g * v + self.h * v**2 / 2 + self.third * v**3 + self.scatter(step) * v**2 / 2 for v in x]
        }


def test_the_walk_stops_at_the_first_that_agrees():
    # g at e differs from that at 2 e by 3 third e^2.
    told = []
    choice = autotune.find_eps(Quadratic(3.0), [0, 1], lambda *done: told.append(done))
    assert choice.eps == 1e-4 and choice.agreed and len(choice.tried) == 1 and choice.tried[0].rms_g == pytest.approx(1)
    assert told[-1] == (32, 32) and told[0] == (1, 9 * 16)
    worse = autotune.find_eps(Quadratic(3.0, 1e8), [0])
    assert not worse.agreed and len(worse.tried) == len(autotune.EPS_GRID)
    assert worse.rms_difference == min(t.rms_difference for t in worse.tried)
    with pytest.raises(ArgumentError, match="finite estimate"):
        autotune.find_eps(Quadratic(math.nan), [0])


def test_lr_is_the_constant_over_the_mean_second_difference():
    engine, told = Quadratic(5.0), []
    choice = autotune.find_lr(engine, [0], 1e-3, lambda *done: told.append(done))
    assert choice.trace_h == pytest.approx(5.0) and choice.lr == autotune.LR_CONSTANT / choice.trace_h
    assert len(choice.samples) == 32 and choice.curvature_eps == autotune.CURVATURE_EPS and told[-1] == (32, 32)
    assert autotune.find_lr(engine, [0], 2e-2).curvature_eps == 2e-2
    # Two-sided pairs on the query number of diagnostics, whatever the method's plan; the centre apart.
    assert {(q, abs(sign)) for _, branches, _ in engine.asked for q, sign, eps in branches if eps} == {
        (autotune.DIAGNOSTIC_QUERY, 1)
    }
    assert max(len(branches) for _, branches, _ in engine.asked) == 2


@pytest.mark.parametrize(("h", "verdict"), [(1.0, "lost in its noise"), (-30.0, "negative")])
def test_no_lr_from_noise_nor_from_a_curvature_below_0(h, verdict):
    engine = Quadratic(h, scatter=lambda i: 40.0 * (-1) ** i)
    choice = autotune.measure_lr(engine, [0], 1e-3)
    assert choice.lr is None and choice.verdict == verdict and len(choice.samples) == autotune.MOST_LR_PROBES
    with pytest.raises(ArgumentError, match="stand out of twice its error"):
        autotune.find_lr(engine, [0], 1e-3)


def test_running_mean_and_its_error():
    np = pytest.importorskip("numpy")
    from pysmezo._draw_lr import running

    samples = np.random.default_rng(0).normal(300.0, 50.0, 40)
    mean, error = running(samples)
    for n in (2, 7, 40):
        assert mean[n - 1] == pytest.approx(samples[:n].mean())
        assert error[n - 1] == pytest.approx(samples[:n].std(ddof=1) / math.sqrt(n))


# ---- presets


def test_presets_are_listed_without_a_model(capsys):
    assert cli.main(["find-lr", "--presets", "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    rows = json.loads(last)["presets"]
    assert len(lines) == len(rows) + 1 == len(presets.PRESETS) + 1
    assert {"mezo", "sparse-mezo", "sensitive", "tezo", "subzero", "lozo"} <= {r["method"] for r in rows}
    for r in rows:
        assert r["source"] and r["read_in"] and r["setting"]
        assert r["lrs"] and all(1e-9 < lr < 1 for lr in r["lrs"]) and (r["eps"] is None or 0 < r["eps"] <= 0.1)


def test_auto_goes_by_the_objective(tmp_path):
    """The likelihood curves upwards where the loss curves downwards, and four times it four times as much."""
    c = tiny_llama.config(vocab=320)
    model = tiny_llama.save(tmp_path / "m", c, tiny_llama.to_bf16(tiny_llama.random_weights(c)), "BF16")
    ids = np.random.default_rng(1).integers(0, 320, (4, 12))
    batch = {"input_ids": ids, "labels": ids}

    def likelihood(scale):
        def objective(logits, labels, example):
            x = logits.astype(np.float64)
            of_token = x[np.arange(len(labels)), labels] - np.log(np.exp(x).sum(1))
            return scale * np.mean([of_token[example == e].mean() for e in np.unique(example)])

        return objective

    options = {"method": MeZO(), "lr": "auto", "eps": "auto", "dtype": "fp32", "threads": 2}
    with Runtime.from_pretrained(model, **options) as run:
        with pytest.raises(ArgumentError, match=r"tr\(H\) measured as -\d+ .*curves downwards"):
            run.train_step(batch)
    found = []
    for scale in (1, 4):
        with Runtime.from_pretrained(model, **options) as run:
            run.train_step(batch, objective=likelihood(scale))
            assert run.lr == pytest.approx(autotune.LR_CONSTANT / run.choices["trace_h"])
            found.append(run.choices["trace_h"])
    assert found[1] == pytest.approx(4 * found[0], rel=0.01)
