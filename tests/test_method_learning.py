"""The comparison of methods at equal forwards: its arithmetic on made-up rows; that a run stops and goes on, and is
committed again, without a bit of difference, on a tiny model."""

import itertools
import json
import math

import pytest
import tiny_llama
import tiny_task

pytest.importorskip("pysmezo._core")

from benchmarks import common, learning, learning_data, method_learning, method_learning_plan, speedup
from benchmarks import method_learning_report as report
from benchmarks import method_learning_rows as rows_of
from benchmarks import method_learning_runs as runs
from benchmarks import method_learning_tables as tables
from pysmezo import ArgumentError
from pysmezo.methods import METHODS

# -------------------------------------------------------------------------------------------------------- arithmetic


def line(slope: float, start: float = 1.0, points=range(0, 1300, 100)) -> dict:
    return {f: start - slope * f for f in points}


def test_speed_up_counts_forwards_until_the_mean_of_three_stays_below():
    mezo = line(1e-4)  # its last mean of three is that of 1000, 1100, 1200, so 0.89 at 1100
    same = speedup.speed_up([mezo], [mezo])
    assert same["level"] == pytest.approx(0.89) and (same["mezo_forwards"], same["speed_up"]) == (1100, 1.0)
    faster = speedup.speed_up([mezo], [line(2.2e-4)])
    assert (faster["row_forwards"], faster["speed_up"]) == (500, 2.2)
    assert speedup.speed_up([mezo], [line(0.9e-4)])["speed_up"] == 0.0
    # Below, above again, below for good: what counts is the last time.
    back = {**line(4e-4), 800: 0.95}
    assert back[700] < 0.89 and speedup.needed(back, 0.89) == speedup.needed(line(4e-4), 0.89) == 300
    assert speedup.needed({**back, 800: 1.9}, 0.89) == 1000
    diverged = line(4e-4) | dict.fromkeys(range(600, 1300, 100), math.inf)
    assert speedup.speed_up([mezo], [diverged])["speed_up"] == 0.0
    assert speedup.speed_up([diverged], [mezo]) is None
    # A shorter run is judged by what it has.
    assert speedup.speed_up([mezo], [line(2.2e-4, points=range(0, 700, 100))])["speed_up"] == 2.2
    assert speedup.speed_up([mezo], [line(2.2e-4, points=(0, 600))]) is None


def test_level_and_curves_are_averaged_over_seeds():
    a, b = line(1e-4), line(3e-4)
    found = speedup.speed_up([a, b], [line(4e-4), line(4e-4)])
    assert found["level"] == pytest.approx(1 - 2e-4 * 1100) and found["row_forwards"] == 600


def test_interval_is_the_bootstrap_of_all_resamples():
    mezo = {s: line(1e-4 * (1 + 0.1 * s)) for s in range(4)}
    row = {s: line(2e-4 * (1 + 0.5 * s)) for s in range(4)} | {9: line(1.0)}  # a seed without a partner
    found = speedup.paired(mezo, row)
    every = sorted(
        speedup.speed_up([mezo[s] for s in c], [row[s] for s in c])["speed_up"]
        for c in itertools.product(range(4), repeat=4)
    )
    n = len(every)
    assert found["seeds"] == 4 and n == 256 and len(set(every)) > 3
    assert found["lower"] == every[math.ceil(0.025 * n) - 1] and found["upper"] == every[math.ceil(0.975 * n) - 1]
    assert found["lower"] < found["upper"] and found["lower"] <= found["speed_up"] <= found["upper"]
    alike = speedup.paired({s: line(1e-4) for s in range(5)}, {s: line(2.2e-4) for s in range(5)})
    assert alike["lower"] == alike["speed_up"] == alike["upper"] == 2.2
    assert (
        "lower" not in speedup.paired({0: line(1e-4)}, {0: line(1e-4)}) and speedup.paired(mezo, {7: line(1)}) is None
    )


def probes(name="mezo", g2=1.0, trace=100.0, error=0.0, queries=1, branches=2, of=None) -> dict:
    row = {"piece": f"diagnose/rt/{name}", "grad_square": g2, "grad_square_error": 0.3 * g2, "trace_h": trace}
    row |= {"trace_h_error": error, "queries": queries, "branches": branches, "probes_of": of or name, "eps": 1e-3}
    row |= {"grad_rms": g2**0.5, "n_probes": 32, "survival": 1.0, "density": 1.0, "lr": 1e-4, "lr_rule": "find-lr"}
    return row


def test_predicted_speed_up_is_per_forward():
    mezo = probes()
    assert speedup.predicted(probes("one-sided", of="mezo"), mezo) == (1.0, 0.0)
    value, error = speedup.predicted(probes("fzoo", queries=8, branches=9), mezo)
    assert value == pytest.approx(16 / 9) and error == pytest.approx(value * 0.3 * 2**0.5)
    assert speedup.predicted(probes("random-mask", g2=0.25, trace=25.0), mezo)[0] == 1.0
    assert speedup.predicted(probes("lozo", error=51.0), mezo) is None


def test_lr_goes_on_until_the_best_is_between_worse_ones():
    def path(loss_at, most=10):
        tried = {}
        while (k := runs.next_exponent(tried, most)) is not None:
            tried[k] = loss_at(k)
        return tried

    assert path(lambda k: k**2).keys() == {-1, 0, 1}
    assert sorted(path(lambda k: (k - 3) ** 2)) == [-1, 0, 1, 2, 3, 4]
    assert sorted(path(lambda k: (k + 2) ** 2)) == [-3, -2, -1, 0, 1]
    # Where all diverge, down; and an end is said to be one.
    down = path(lambda k: math.inf if k > -3 else abs(k + 4))
    assert sorted(down) == [-5, -4, -3, -2, -1, 0, 1] and runs.best(down) == -4 and runs.is_interior(down)
    endless = path(lambda k: -k, most=6)
    assert len(endless) == 6 and runs.best(endless) == max(endless) and not runs.is_interior(endless)


# ------------------------------------------------------------------------------------------------------------ report


def run_row(name: str, seed: int, slope: float, accuracy: float, task="rt", kind="run") -> dict:
    curve = [{"forwards": f, "loss": loss, "accuracy": accuracy} for f, loss in line(slope).items()]
    row = {"piece": f"{kind}/{task}/{name}/seed{seed}", "name": name, "seed": seed, "curve": curve, "lr": 1e-4}
    return row | {"test_accuracy": accuracy, "dev_loss": curve[-1]["loss"], "dev_accuracy": accuracy, "forwards": 1200}


def test_table_and_targets_say_what_is_missing():
    empty = tables.table([])
    for name in METHODS:
        assert rows_of.label(name) in empty
    assert empty.count("not run: ") == 1 + 2 + 2 + 2 + 1 and "| ---" not in empty
    nothing = report.result([])
    assert all(t["met"] is None and t["not_run"] == "its turn has not come" for t in nothing["targets"])
    assert len(nothing["targets"]) == 2 * len(rows_of.NAMED) + 2
    json.dumps(nothing, allow_nan=False)

    some = [run_row(n, s, x, 0.7) for s in range(5) for n, x in (("mezo", 1e-4), ("lozo", 2.2e-4), ("fzoo", 0.5e-4))]
    some += [run_row("sparse-mezo", 0, 1.9e-4, 0.7), run_row("lezo", 0, 1e-4, 0.7, kind="other")]
    some += [run_row("sensitive", s, 1e-4, 0.7 + x) for s, x in enumerate((0.0, 0.01, -0.01, 0.02, -0.02))]
    some += [
        probes(),
        probes("lozo"),
        probes("fzoo", error=90.0),
        {"piece": "data/trec", "not_run": "TREC cannot be had"},
    ]
    some += [{"piece": "lr/rt/lozo", "lr": 1e-4, "eps": 1e-3, "interior": True, "tried": [[1e-4, 0.7], [3e-4, None]]}]
    text = tables.table(some)
    assert "2.20 (2.20 to 2.20)" in text and "1.00 +- 0.42" in text and "curvature lost in noise" in text
    assert "not reached (not reached to not reached)" in text and "0.0001: 0.7000, 0.0003: diverged" in text
    assert "SparseMeZO(0.75) (seeds 1 2 3 4)" in text and text.count("TREC cannot be had") == 3
    assert "| Sensitive(fraction=0.001) over NF4 less MeZO | 5 | +0.0000 | -0.0196 to +0.0196 |" in text
    assert "with stage 6" not in text
    more = [run_row("mezo", 5, 1e-4, 0.7, kind="more"), run_row("sensitive", 5, 1e-4, 0.76, kind="more")]
    assert "| Sensitive(fraction=0.001) over NF4 less MeZO, with stage 6 | 6 | +0.0100 |" in tables.table(some + more)
    assert tables.table(some + more).startswith(text[: text.index("Test accuracy, seed by seed")])
    assert report.result(some + more)["targets"] == report.result(some)["targets"]
    targets = {t["name"]: t for t in report.result(some)["targets"]}
    assert targets["speed-up of LOZO, demo task"]["met"] and targets["speed-up of LOZO, demo task"]["measured"] == 2.2
    assert targets["speed-up of FZOO(8 queries), demo task"]["measured"] == 0.0
    assert targets["speed-up of SparseMeZO(0.75), demo task"]["not_run"] == "1 of 5 seeds"
    assert targets["speed-up of LOZO, TREC"]["not_run"] == "TREC cannot be had"
    assert targets["test accuracy of Sensitive(fraction=0.001) over NF4 less MeZO, demo task, lower end"]["met"]
    json.dumps(report.result(some), allow_nan=False)


def test_a_diverged_run_is_a_row_like_others():
    lost = run_row("lozo", 0, 1e-4, 0.5)
    lost["curve"][-1]["loss"] = lost["dev_loss"] = None
    rows = [run_row("mezo", 0, 1e-4, 0.7), lost]
    assert "| LOZO | 1 | 0.5000 | diverged | not reached | 1100 | not reached (one seed) |" in tables.table(rows)
    json.dumps(report.result(rows), allow_nan=False)
    lost["name"], lost["piece"] = "mezo", "run/rt/mezo/seed0"
    targets = report.result([lost, run_row("lozo", 0, 1e-4, 0.7)])["targets"]
    why = {t["name"]: t["not_run"] for t in targets}
    assert why["speed-up of LOZO, demo task"] == "MeZO's last losses are not finite"


# -------------------------------------------------------------------------------------------------- pieces and runs


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A tiny model and task as the demo's; rows and cache in the test's folder."""
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("PYSMEZO_BENCH_CACHE", str(tmp_path / "cache"))
    demo = tmp_path / "demo"
    c = tiny_llama.config(vocab=320)
    tiny_llama.save(demo / "model", c, tiny_llama.to_bf16(tiny_llama.random_weights(c)), "BF16")
    tiny_task.write_tokenizer(demo / "model")
    files = {p: tiny_task.write_jsonl(demo / f"{p}.jsonl", tiny_task.rows(n)) for p, n in (("train", 64), ("dev", 32))}
    task = {"template": "{text} It was", "label_words": [" terrible", " great"], "label_column": "label"}
    monkeypatch.setattr(learning_data, "files", lambda *_: files | {"test": files["dev"], "task": task})
    return rows_of.Work(demo, math.inf)


def test_every_row_of_methods_has_its_pieces_and_the_plan_its_hours(work):
    pieces = method_learning.pieces(work)
    keys = [p.key for p in pieces]
    assert len(set(keys)) == len(keys)
    for name in METHODS:
        assert f"diagnose/rt/{name}" in keys
        assert (f"other/rt/{name}/seed0" in keys) != all(f"run/{t}/{name}/seed4" in keys for t in rows_of.TASKS)
    # What a piece takes its lr from comes before it, and the most telling before the rest.
    assert keys.index("diagnose/rt/fzoo") < keys.index("lr/rt/fzoo") < keys.index("run/rt/fzoo/seed0")
    order = ["run/rt/fzoo/seed0", "other/rt/lezo/seed0", "run/rt/mezo/seed1", "run/trec/mezo/seed0"]
    assert [keys.index(k) for k in order] == sorted(keys.index(k) for k in order)
    text = method_learning_plan.plan(pieces, work, method_learning.GROUPS)
    assert f"{len(pieces)}" == str(sum(int(row.split()[4]) for row in text.splitlines() if " of " in row))
    work.done = {p.key: {} for p in pieces}
    assert "     0 min  in all" in method_learning_plan.plan(pieces, work, method_learning.GROUPS)


def stop_after(monkeypatch, work, n_checks: int) -> None:
    left = iter(range(n_checks))
    monkeypatch.setattr(work, "check_time", lambda: next(left, None) is None and out_of_time())


def out_of_time():
    raise learning.OutOfTime


def test_a_run_stopped_in_the_middle_ends_as_if_it_had_not_been(work, monkeypatch):
    def run(key):
        return work.piece(key, lambda: runs.train(work, key, "rt", "fzoo", 0, 1e-3, 3e-3, 60, 20, True))

    whole = run("run/rt/fzoo/whole")
    assert (whole["steps"], whole["branches"]) == (6, 9)
    assert [work.done[f"run/rt/fzoo/whole@{f}"]["step"] for f in (20, 40, 60)] == [2, 4, 6]
    stop_after(monkeypatch, work, 6)  # pieces ask too: within the third of the six steps
    with pytest.raises(learning.OutOfTime):
        run("run/rt/fzoo/parts")
    monkeypatch.setattr(work, "check_time", lambda: None)
    found = run("run/rt/fzoo/parts")
    measured = ("piece", "seconds", "forward_s")
    assert {k: v for k, v in found.items() if k not in measured} == {
        k: v for k, v in whole.items() if k not in measured
    }
    with pytest.raises(ArgumentError, match=r"lr 0.002, but the run in this folder began with 0.001"):
        runs.train(work, "run/rt/fzoo/parts", "rt", "fzoo", 0, 2e-3, 3e-3, 60, 20, False)


@pytest.mark.slow
def test_earlier_runs_are_committed_again_bit_for_bit(work):
    method = learning.method_of("mezo")
    key = "final/rt/mezo/seed0"
    old = learning.Work(work.demo, math.inf)
    then = old.piece(key, lambda: learning.train(old, key, "rt", method, 0, 1e-3, 3e-3, "nearest", 30, True))
    old.piece("lr/rt/mezo", lambda: {"lr": 1e-3, "eps": 3e-3, "interior": True, "trace_h": None})
    lr = runs.tune(work, "rt", "mezo")
    assert (lr["lr"], lr["eps"], lr["interior"], lr["from"]) == (1e-3, 3e-3, True, "results/learning.jsonl")
    again = runs.train(work, "run/rt/mezo/seed0", "rt", "mezo", 0, lr["lr"], lr["eps"], 60, 20, True)
    assert again["committed_again"] == 30 and again["forward_s"] is None
    assert again["curve"][-1]["loss"] == then["dev_loss"] and again["test_accuracy"] == then["test_accuracy"]
    # Another lr is another run, and is run.
    other = runs.train(work, "run/rt/mezo/other", "rt", "mezo", 0, 2e-3, 3e-3, 60, 20, True)
    assert other["committed_again"] == 0 and other["forward_s"] > 0
    alone = runs.train(work, "run/rt/lezo/seed0", "rt", "lezo", 0, 1e-3, 3e-3, 20, 20, False)
    assert alone["steps"] == 10 and "test_accuracy" not in alone


def test_what_cannot_be_had_is_said_once_and_the_rest_is_run(work, monkeypatch):
    def nothing():
        raise RuntimeError("no such package")

    made = []
    keys = ("run/rt/mezo/seed0", "run/trec/mezo/seed0", "run/trec/mezo/seed1")
    pieces = [method_learning.Piece(k.split("/")[1], k, lambda _, k=k: made.append(k)) for k in keys]
    monkeypatch.setattr(method_learning, "pieces", lambda _: pieces)
    monkeypatch.setattr(learning_data, "trec", nothing)
    for _ in range(2):
        method_learning.run_all(rows_of.Work(work.demo, math.inf))
    assert made == [keys[0]] * 2
    assert [r["not_run"] for r in common.rows(work.file)] == ["TREC cannot be had: no such package"]
    monkeypatch.setattr(learning_data, "trec", lambda: None)
    method_learning.run_all(rows_of.Work(work.demo, math.inf))
    assert made[2:] == list(keys) and report.why_not(common.rows(work.file), "trec") == "its turn has not come"
